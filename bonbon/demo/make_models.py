"""Makes the demo's models: a small Llama policy and two reward models, from text that the world generates.

They ship with the package; `python -m bonbon.demo.make_models bonbon/demo/tiny` makes them anew, in about six
minutes on two cores.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from bonbon.demo import world
from bonbon.demo.tiny_models import TinyModels

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = 1024
CONTEXT = 1024
END = "<|end|>"
SPECIAL = ("<|pad|>", "<|begin|>", END, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "<|begin|>{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant, not ' + message.role) }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
}


def make_models(directory: Path, seed: int = 0) -> TinyModels:
    """Train the three models and put them into `directory`; the same seed gives the same models on the same machine."""
    models = TinyModels.within(directory)
    with torch.random.fork_rng(), _bar() as bar:
        tokenizer = _make_tokenizer(seed)
        policy = _train_policy(tokenizer, seed, bar)
        _save(models.policy, policy, tokenizer)
        for path, reward_seed in ((models.reward, seed + 1), (models.held_out_reward, seed + 2)):
            _save(path, _train_reward(policy, tokenizer, reward_seed, bar), tokenizer)
    return models


def _make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(seed)
    texts = [text for request in world.requests(seed, 3000) for text in (request, world.reply(request, rng))]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=END,
        additional_special_tokens=list(SPECIAL[3:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _config(tokenizer: PreTrainedTokenizerFast, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
        **more,
    )


def _train_policy(
    tokenizer: PreTrainedTokenizerFast, seed: int, bar: Callable[..., Callable[[], None]], steps: int = 3000
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(tokenizer))
    rng = random.Random(f"policy/{seed}")
    chats = [_chat(request, world.reply(request, rng)) for request in world.requests(seed, steps * 32)]
    rows = _encode(tokenizer, chats)
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    advance = bar("training the tiny policy", steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = _schedule(optimizer, steps)
    for batch in _batches(rows, 32, steps, rng):
        tokens, mask = _pad(batch, tokenizer.pad_token_id)
        in_reply = (tokens == assistant).cumsum(1) > 0
        logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
        targets = tokens[:, 1:].masked_fill(~(in_reply[:, :-1] & mask[:, 1:].bool()), -100)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        _step(loss, model, optimizer, schedule)
        advance()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
    )
    return model.eval()


def _train_reward(
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    bar: Callable[..., Callable[[], None]],
    steps: int = 1000,
) -> LlamaForSequenceClassification:
    """Bradley-Terry on preferences between two replies to a request, starting from the policy's weights."""
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(_config(tokenizer, num_labels=1))
    model.model.load_state_dict(policy.model.state_dict())
    rng = random.Random(f"reward/{seed}")
    chats: list[list[dict[str, str]]] = []
    for request in world.requests(seed + 1000, steps * 32):
        pair = world.reply(request, rng), world.reply(request, rng)
        margin = world.quality(request, pair[0]) - world.quality(request, pair[1])
        chosen = 0 if rng.random() < 1 / (1 + exp(-2 * margin)) else 1
        chats += [_chat(request, pair[chosen]), _chat(request, pair[1 - chosen])]
    encoded = _encode(tokenizer, chats)
    advance = bar("training a tiny reward model", steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.01)
    schedule = _schedule(optimizer, steps)
    pairs = list(zip(encoded[::2], encoded[1::2], strict=True))
    for batch in _batches(pairs, 32, steps, rng, length=lambda pair: max(map(len, pair))):
        tokens, mask = _pad(
            [chosen for chosen, _ in batch] + [rejected for _, rejected in batch], tokenizer.pad_token_id
        )
        better, worse = model(input_ids=tokens, attention_mask=mask).logits[:, 0].chunk(2)
        _step(-logsigmoid(better - worse).mean(), model, optimizer, schedule)
        advance()
    return model.eval()


def _chat(request: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]


def _encode(tokenizer: PreTrainedTokenizerFast, chats: list[list[dict[str, str]]]) -> list[list[int]]:
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return encoded


def _batches(
    rows: list[Any], size: int, steps: int, rng: random.Random, length: Callable[[Any], int] = len
) -> Iterator[list[Any]]:
    """Batches of rows of like length, in random order."""
    order = sorted(range(steps * size), key=lambda i: length(rows[i % len(rows)]) + rng.random() * 8)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(batches)
    for batch in batches:
        yield [rows[i % len(rows)] for i in batch]


def _pad(rows: list[list[int]], pad: int) -> "tuple[Tensor, Tensor]":
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return tokens, mask


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps, pct_start=0.1
    )


def _step(
    loss: "Tensor",
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _save(
    directory: Path, model: LlamaForCausalLM | LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@contextmanager
def _bar() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()) as progress:

        def start(title: str, total: int) -> Callable[[], None]:
            task = progress.add_task(title, total=total)
            return lambda: progress.advance(task)

        yield start


if __name__ == "__main__":
    print(make_models(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
