"""Tiny random models and adapters, an independent forward pass, and invalid adapters."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bonbon.engines.candidates import Draws
from bonbon.engines.engine import Engine, VersionFiles, VersionKind
from bonbon.prompt import Prompt

CONTEXT = 1024
WORDS = ["<unk>", "<s>", "</s>", "<user>", "<bot>", ".", ","] + [f"w{i}" for i in range(41)]
EOS = 2
CHAT = (
    "{% for m in messages %}{% if m.role == 'critic' %}{{ raise_exception('no critics here') }}{% endif %}"
    "<user> {{ m.content }} {% endfor %}<bot>"
)
PROMPT = Prompt(token_ids=(7, 8, 9, 10))


def save_model(
    directory: Path, *, hidden: int = 32, seed: int = 0, words: Sequence[str] = WORDS, tied: bool = False
) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=EOS,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    words_only = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words_only.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_only, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(directory)
    return directory


def save_adapter(directory: Path, base: Path, seed: int, **options: Any) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | options)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    adapted.save_pretrained(directory, save_embedding_layers=False)
    return directory


async def load_all(engine: Engine, adapters: dict[str, Path]) -> None:
    for name, directory in adapters.items():
        await engine.load(VersionFiles(name, VersionKind.ADAPTER, directory))


def reference(base: Path, adapter: Path | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


@torch.no_grad()
def logprobs(model: Any, prompt: Sequence[int], tokens: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """Returns log-probabilities of all tokens at each sampled position, by one plain forward pass."""
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    distribution: torch.Tensor = (logits / temperature).log_softmax(-1)
    return distribution


def assert_logprobs(model: Any, draws: Draws, temperature: float = 1.0) -> None:
    for draw in draws.draws:
        expected = logprobs(model, draws.prompt.token_ids, draw.token_ids, temperature)
        picked = expected[range(len(draw.token_ids)), draw.token_ids]
        assert draw.logprobs == pytest.approx(picked.tolist(), abs=1e-4)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "adapter_model.safetensors"
        weights = load_file(path)
        edit(weights)
        save_file(weights, path)

    return apply


def _poison(value: float) -> Callable[[Path], None]:
    return edit_weights(lambda weights: next(iter(weights.values())).view(-1)[0].fill_(value))


def _truncate(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _only_pickle(directory: Path) -> None:
    torch.save(load_file(directory / "adapter_model.safetensors"), directory / "adapter_model.bin")
    (directory / "adapter_model.safetensors").unlink()


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "corrupt or truncated"),
    "pickled": (_only_pickle, "pickled weights are never read"),
    "not a number": (_poison(math.nan), "NaN or infinite"),
    "infinite": (_poison(-math.inf), "NaN or infinite"),
    "no config": (lambda directory: (directory / "adapter_config.json").unlink(), "does not exist"),
    "broken config": (lambda directory: (directory / "adapter_config.json").write_text("{"), "not a JSON object"),
    "list config": (lambda directory: (directory / "adapter_config.json").write_text("[]"), "not a JSON object"),
    "other method": (edit_config(peft_type="IA3"), "IA3"),
    "imports a module": (edit_config(megatron_config={"x": 1}, megatron_core="os"), "megatron_config"),
    "dora": (edit_config(use_dora=True), "use_dora"),
    "changes the base": (edit_config(init_lora_weights="pissa"), "pissa"),
    "other rank": (edit_config(r=2), "lora_A"),
    "no rank": (edit_config(r=0), "fit the base|refuses"),
    "rank of no number": (edit_config(r="many"), "fit the base|refuses"),
    "fewer modules": (edit_config(target_modules=["q_proj"]), "missing"),
    "unknown modules": (edit_config(target_modules=["no_such_module"]), "no_such_module"),
    "missing weight": (edit_weights(lambda weights: weights.pop(next(iter(weights)))), "missing"),
}
