"""Compares the trainer's speed with TRL's DPOTrainer on the same pairs, model, method and precision.

pip install trl          # into an environment of its own that also has bonbon-serve[train]
python benchmarks/training.py

Both train a LoRA adapter with the DPO loss on the best and the worst candidate of the same groups. They take turns, so
that other load on the machine affects both alike and the ratio is more reliable than the rates. A rate counts the
tokens of the pairs' texts, with the prompt once per side, however often each trainer reads it. TRL runs twice: with its
defaults, which compute the reference's log-probabilities in every step, and with log-probabilities computed beforehand,
which takes time that is excluded, as it is for bonbon. The last row is bonbon's default loss, which learns from all
candidates of a group.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bonbon.pairs.reading.snapshot import SCHEMA
from bonbon.progress import Bars
from bonbon.settings import TrainSettings
from trainer.data.groups import Groups, Tokens
from trainer.training.accelerator import make_accelerator
from trainer.training.learning.candidate_selection import candidates
from trainer.training.learning.learner import Learner
from trainer.training.learning.loss import LossName, make_loss
from trainer.training.learning.policy import load_policy

VOCABULARY, END = 32_000, 2
LORA: dict[str, int] = {"lora_rank": 16, "lora_alpha": 32}
RATE = 1e-5

Turn = Callable[[], float]
"""Trains on all groups once and returns the seconds that took."""


def main(
    hidden: int = typer.Option(512, help="Width of the model with random weights."),
    layers: int = typer.Option(8, help="Its depth."),
    model: Path = typer.Option(None, help="A model's directory, instead of random weights."),
    groups: int = typer.Option(32, help="Groups per turn."),
    n: int = typer.Option(8, help="Candidates per group."),
    prompt: int = typer.Option(96, help="Tokens per prompt."),
    completion: int = typer.Option(128, help="Most tokens per candidate; lengths vary evenly down to a quarter of it."),
    batch: int = typer.Option(8, help="Pairs per step, in one forward pass."),
    turns: int = typer.Option(3, help="Turns of each trainer."),
    precision: str = typer.Option("auto", help="no: 32 bits; bf16; auto: bf16 on a GPU that has it."),
    json_: Path = typer.Option(None, "--json", help="Write the figures to this file."),
) -> None:
    """Print both trainers' tokens per second, and their ratio."""
    with tempfile.TemporaryDirectory() as work:
        base = model or _random_model(Path(work) / "base", hidden, layers)
        path = _make_groups(Path(work) / "groups.parquet", base, groups, n, prompt, completion)
        data = Groups.read(path, base="base")
        best, worst = data.starts + data.n - 1, data.starts
        tokens = int(2 * data.prompts.lengths.sum() + data.tokens[best].sum() + data.tokens[worst].sum())
        every = int(n * data.prompts.lengths.sum() + data.tokens.sum())
        targets: dict[str, tuple[Turn, int]] = {
            "TRL": (_trl(base, data, batch, precision, Path(work), precompute=False), tokens),
            "TRL, reference computed before": (_trl(base, data, batch, precision, Path(work), precompute=True), tokens),
            "bonbon, dpo": (_bonbon(base, data, "dpo", batch, precision), tokens),
            "bonbon, gvpo, all candidates": (_bonbon(base, data, "gvpo", max(1, 2 * batch // n), precision), every),
        }
        rates: dict[str, list[float]] = {name: [] for name in targets}
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("turns", total=(turns + 1) * len(targets))
            for turn in range(turns + 1):
                for name, (run, count) in targets.items():
                    seconds = run()
                    if turn:  # the first turn warms up
                        rates[name].append(count / seconds)
                    progress.advance(task)
    _show(rates)
    if json_:
        json_.write_text(json.dumps({"rates": rates, "torch": torch.__version__, "device": _device()}, indent=2) + "\n")


def _show(rates: dict[str, list[float]]) -> None:
    table = Table(title=f"tokens of pairs a second, {_device()}, medians")
    for title, justify in (("", "left"), ("tokens/s", "right"), ("over TRL, turn by turn", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for name, found in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(found, rates["TRL"], strict=True))
        table.add_row(name, f"{statistics.median(found):,.0f}", f"{ratio:.2f}")
    Console().print(table)


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def _random_model(directory: Path, hidden: int, layers: int) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def _make_groups(path: Path, base: Path, groups: int, n: int, prompt: int, completion: int) -> Path:
    """Writes groups of random tokens, whose content does not affect the speed."""
    rng = np.random.default_rng(0)
    vocabulary = AutoModelForCausalLM.from_pretrained(base).config.get_text_config().vocab_size
    rows = []
    for number in range(groups):
        lengths = rng.integers(max(1, completion // 4), completion + 1, n)
        rows.append(
            {
                "group_id": f"{number:032x}",
                "version": "base",
                "prompt_digest": f"{number:064x}",
                "prompt": "{}",
                "prompt_token_ids": rng.integers(3, vocabulary, prompt).tolist(),
                "candidates": [[*rng.integers(3, vocabulary, length - 1).tolist(), END] for length in lengths],
                "rewards": [float(rank) for rank in range(n)],
                "logprobs": [-1.0] * n,
                "n": n,
                "temperature": 1.0,
                "max_tokens": completion,
                "stop": [],
                "split": "train",
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    return path


def _bonbon(base: Path, data: Groups, loss: LossName, batch: int, precision: Any) -> Turn:
    config = TrainSettings(loss=loss, batch_size=batch, micro_batch_size=batch, precision=precision, **LORA)
    accelerator = make_accelerator(config)
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    learner = Learner(
        config,
        load_policy(base, None, config, dtype=dtype),
        accelerator,
        base=base,
        base_weights=None,
        loss=make_loss(loss, n=int(data.n[0])),
        progress=Bars(show=False),
    )
    learner.logprobs.try_sharing_prompts(data)
    reference = learner.of_base(data, np.arange(len(data)), "reference")

    def run() -> float:
        start = perf_counter()
        for step, rows in enumerate(np.split(np.arange(len(data)), len(data) // batch)):
            chosen = candidates(data, rows, loss, seed=0, step=step)
            learner.update(data, chosen, reference, rate=RATE, seed=step)
        _synchronise()
        return perf_counter() - start

    return run


def _trl(base: Path, data: Groups, batch: int, precision: Any, work: Path, *, precompute: bool) -> Turn:
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    bf16 = precision == "bf16" or (precision == "auto" and torch.cuda.is_available())
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16 if bf16 else torch.float32),
        args=DPOConfig(
            output_dir=str(work / f"trl-{precompute}"),
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            learning_rate=RATE,
            max_length=None,
            precompute_ref_log_probs=precompute,
            gradient_checkpointing=False,
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(_as_text(data)),
        processing_class=_words(int(data.completions.values.max()) + 1),
        peft_config=LoraConfig(
            r=LORA["lora_rank"], lora_alpha=LORA["lora_alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Times the steps alone, without the work before and after them."""

        start = seconds = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            _synchronise()
            self.seconds = perf_counter() - self.start

    clock = Clock()
    trainer.add_callback(clock)

    def run() -> float:
        trainer.train()
        return clock.seconds

    return run


def _words(vocabulary: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer for which token 7 is the word `w7`, because TRL takes text and must get these very tokens."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"w{END}", pad_token="w0")


def _as_text(data: Groups) -> list[dict[str, str]]:
    def text(tokens: Tokens) -> str:
        return " ".join(f"w{token}" for token in tokens)

    return [
        {
            "prompt": text(data.prompts[row]),
            "chosen": " " + text(data.completions[int(data.starts[row] + data.n[row] - 1)]),
            "rejected": " " + text(data.completions[int(data.starts[row])]),
        }
        for row in range(len(data))
    ]


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    typer.run(main)
