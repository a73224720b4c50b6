"""Draws real groups from a tiny random model for the trainer's tests, with their log-probabilities."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bonbon.engines.engine import Sampling, VersionKind
from bonbon.pairs.group_records import Candidate, Group
from bonbon.pairs.pair_log import PairLog
from bonbon.pairs.ranking import rank, why_unclean
from bonbon.pairs.reading.snapshot import Fractions, Snapshot, take_snapshot
from bonbon.prompt import Prompt
from bonbon.registry.registry import Registry
from bonbon.store.database import open_database

VERSION = "version"
"""The sampler's name in groups that are drawn before the version of an adapter has its name."""
VOCABULARY, EOS = 40, 1


def make_base(directory: Path, *, seed: int = 0, tied: bool = False) -> Path:
    """Saves a random Llama of 20k weights with a tokenizer, in Hugging Face format."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=EOS,
        pad_token_id=0,
        bos_token_id=2,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w0").save_pretrained(directory)
    return directory


Draw = tuple[list[int], float]


def draw(model: Any, prompt: list[int], n: int, *, temperature: float, max_tokens: int) -> list[Draw]:
    """Returns n draws by transformers' `generate`: tokens (with end of sequence) and their summed log-probability."""
    out = model.generate(
        torch.tensor([prompt] * n),
        attention_mask=torch.ones(n, len(prompt), dtype=torch.long),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = out.sequences[:, len(prompt) :]
    logprobs = (torch.stack(out.logits, dim=1).double() / temperature).log_softmax(-1)
    taken = logprobs.gather(-1, tokens[..., None])[..., 0]
    draws = []
    for row, row_logprobs in zip(tokens.tolist(), taken, strict=True):
        length = row.index(EOS) + 1 if EOS in row else len(row)
        draws.append((row[:length], float(row_logprobs[:length].sum())))
    return draws


def text_of(tokens: Sequence[int]) -> str:
    """Returns the text as the engine writes it, without end of sequence and padding."""
    return " ".join(f"w{token}" for token in tokens if token not in (0, EOS))


def score(prompt: Prompt, completions: Sequence[str]) -> list[float]:
    """Scores completions for "python:tests.support.data.sampled_groups:score".

    Even words are good, and a small share of their sum breaks ties. Words of other texts do not count.
    """
    numbers = [[int(word[1:]) for word in text.split() if word[1:].isdigit()] for text in completions]
    return [sum(n % 2 == 0 for n in words) / (len(words) or 1) + 1e-4 * sum(words) for words in numbers]


FRACTIONS = Fractions(test=1 / 6, validation=1 / 6)


def make_snapshot(
    directory: Path,
    base: Path,
    *,
    groups: int = 96,
    temperatures: tuple[float, ...] = (1.0,),
    ns: tuple[int, ...] = (4,),
    max_tokens: int = 8,
    seed: int = 0,
    fractions: Fractions = FRACTIONS,
    model: Any = None,
    adapter: Path | None = None,
) -> Snapshot:
    """A snapshot, through the pair log, of groups drawn from the base.

    Args:
        model: draws the groups, which say all the same that the base drew them.
        adapter: of a version that draws for every prompt, too, and which training starts from.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    own = (model or AutoModelForCausalLM.from_pretrained(base)).eval()
    adapted: Any = None
    if adapter is not None:
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    drawn: list[Group] = []
    for i in range(groups):
        prompt = (2, *rng.integers(3, VOCABULARY, rng.integers(2, 6)).tolist())
        sampling = Sampling(max_tokens=max_tokens, temperature=temperatures[i % len(temperatures)])
        for version, sampler in (("tiny", own), (VERSION, adapted)):
            if sampler is not None:
                drawn.append(make_group(sampler, version, len(drawn), prompt, ns[i % len(ns)], sampling))
    return asyncio.run(snapshot_of(drawn, directory, base, fractions=fractions, adapter=adapter))


def make_group(model: Any, version: str, number: int, prompt: tuple[int, ...], n: int, sampling: Sampling) -> Group:
    draws = draw(model, list(prompt), n, temperature=sampling.temperature, max_tokens=sampling.max_tokens)
    candidates = tuple(
        Candidate(
            index,
            text_of(tokens),
            tuple(tokens),
            logprob,
            "stop" if tokens[-1] == EOS else "length",
        )
        for index, (tokens, logprob) in enumerate(draws)
    )
    group = Group(
        id=f"{number:032d}",
        time=datetime.now(UTC),
        prompt=Prompt(token_ids=prompt),
        prompt_token_ids=prompt,
        version=version,
        sampling=sampling,
        reward_name="even",
        reward_version="1",
        candidates=rank(
            candidates, score(Prompt(token_ids=prompt), [c.text for c in candidates]), random.Random(number)
        ),
    )
    return replace(group, unclean=why_unclean(group))


async def snapshot_of(
    groups: list[Group],
    directory: Path,
    base: Path,
    *,
    fractions: Fractions = FRACTIONS,
    adapter: Path | None = None,
) -> Snapshot:
    """To start from the base `tiny`, or, where there is an adapter, from the version that drew `VERSION`'s groups."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    async with open_database(f"sqlite+aiosqlite:///{directory}.db") as database:
        registry = Registry(database, directory.with_suffix(".versions"))
        version = (await registry.register_base("tiny", base)).name
        if adapter is not None:
            registered = await registry.register(
                base="tiny", parent="tiny", kind=VersionKind.ADAPTER, directory=adapter, training={}
            )
            version = registered.name
            groups = [replace(group, version=version) if group.version == VERSION else group for group in groups]
        log = PairLog(database)
        await log.start()
        await asyncio.gather(*(log.append(group) for group in groups))
        await log.stop()
        return await take_snapshot(database, directory, version=version, fractions=fractions)
