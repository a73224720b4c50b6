"""Writes docs/models.md from the zoo's results: `python -m tests.support.zoo.page > docs/models.md`."""

from collections.abc import Collection, Iterable

from tests.support.zoo.policies import POLICIES, Policy
from tests.support.zoo.results import REFUSED, Result, recorded
from tests.support.zoo.rewards import REWARDS
from tests.support.zoo.stages import NEAR, PROMOTED, SERVED, TRAINED, WITH_ADAPTERS
from tests.support.zoo.tokenizers import CHATML, HEADERS, INST, TURNS

TEMPLATES = {CHATML: "ChatML", HEADERS: "Llama 3's", INST: "Llama 2's", TURNS: "Gemma's", "": "none: text only"}

HEAD = f"""# Models

What works on which engine. `make zoo` makes this page from the results of tests; do not edit it by hand.

Each row is a tiny model with random weights, made by the test suite (`tests/support/zoo`): nothing is downloaded, and
nothing is said about how well a model answers. A number is the largest difference found, in nats per token, between the
log-probabilities that the engine reports and those that transformers computes for the same tokens, one sequence at a
time, in 32 bits. A difference of more than {NEAR:g} fails the test.

- **base**: requests of different lengths, drawn together and alone, up to the last token of the context; and a group
  drawn by best-of-n and read back from the pair log.
- **adapter**: a LoRA adapter in the engine against the same adapter merged into the weights; and base and adapter,
  drawn in one batch, against each alone.
- **trained**: two optimiser steps on groups that the embedded engine has drawn, with the adapter that it gets by
  default. The log-probabilities that the trainer computes of these groups are compared with those in the pair log; then
  the engine loads the trained adapter, and what it reports of its draws is compared with the trainer's adapter, with
  the adapter merged by the trainer unless input and output share their weights, and with the adapter loaded by peft.
- **trained in full**: the same with `train.method = "full"`; the engine and the trainer are compared with the saved
  model as transformers loads it. Of models that the embedded engine refuses, the trainer alone is compared with
  transformers, on random tokens: its log-probabilities, and the evaluation's log ratios of the version to the base.
- **promoted**: both trained versions go on to the end of the loop. The trainer's evaluation draws from each for three
  prompts, and both of its estimates of the KL from the base are compared with transformers', one completion at a time.
  Then the version is registered and promoted, a running service swaps it in, and the log-probabilities in the pair log
  of what the service answers under its alias are compared with the trained weights as transformers and peft load them.

vLLM's columns are of its build for the CPU, which lacks some kernels that GPUs have: mixtures of experts take no
adapters there, and some of them and most models with a recurrent state do not run. vLLM 0.32's own output gives these
causes: there is no kernel for the selective scan (Jamba, Mamba), Qwen3-Next's linear attention runs in bfloat16 only,
the router of Phi-3.5-MoE fails, and the layers of Bamba and MiniMax are not supported at all.

Where a model is **refused**, the engine does not start, and its message says what to do: see
[below](#what-refusals-say). Models that are not in the table are checked when an engine starts, too: it draws for a few
fixed prompts, alone and in one batch, short and as long as the context ([engines.md](engines.md#checks-at-the-start)).

## Policies

The kind is what the model's `config.json` calls `model_type`.

"""
COLUMNS = (
    "model",
    "kind",
    "chat template",
    "embedded, base",
    "embedded, adapter",
    "trained",
    "trained in full",
    "promoted",
    "vLLM, base",
    "vLLM, adapter",
)

REWARD_HEAD = f"""
## Reward models

Scores of the `classifier` reward against those of transformers, text by text; and scores of a batch of short texts and
one that is too long against the scores of each alone. A difference of more than {NEAR:g} fails the test.

| reward model | kind | score | batch |
|-|-|-|-|
"""


def page() -> str:
    """Returns the page."""
    embedded, vllm, rewards = (recorded(table) for table in ("embedded", "vllm", "rewards"))
    rows = [_policy_row(name, policy, embedded.get(name), vllm.get(name)) for name, policy in POLICIES.items()]
    scored = [_row(name, REWARDS[name].kind, *_cells(rewards[name], ("score", "batch"))) for name in REWARDS]
    refusals = [
        *_refusals("Embedded engine", POLICIES, embedded),
        *_refusals("vLLM", POLICIES, vllm),
        *_refusals("Reward models", REWARDS, rewards),
    ]
    head = _row(*COLUMNS) + "|" + "-|" * len(COLUMNS) + "\n"
    return HEAD + head + "".join(rows) + REWARD_HEAD + "".join(scored) + "\n## What refusals say\n" + "".join(refusals)


def _policy_row(name: str, policy: Policy, embedded: Result | None, vllm: Result | None) -> str:
    drawn = (SERVED, WITH_ADAPTERS)
    columns = [
        *(_of(embedded, stages) for stages in (*drawn, *((stage,) for stage in TRAINED), PROMOTED)),
        *(_of(vllm, stages) for stages in drawn),
    ]
    return _row(name, policy.kind, TEMPLATES[policy.tokenizer().chat_template or ""], *columns)


def _of(result: Result | None, stages: Collection[str]) -> str:
    """Returns the largest difference of some stages."""
    if result is None:
        return "not run"
    found = [value for stage, value in result.items() if stage in stages]
    numbers = [value for value in found if not isinstance(value, str)]
    if numbers:
        return _number(max(numbers))
    return "refused" if any(isinstance(value, str) for value in result.values()) else "not run"


def _cells(result: Result, stages: Iterable[str]) -> list[str]:
    return ["refused" if REFUSED in result else _number(result[stage]) for stage in stages]


def _number(value: float | str) -> str:
    return "0" if not value else f"{value:.0e}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _refusals(title: str, names: Iterable[str], results: dict[str, Result]) -> Iterable[str]:
    """Yields each message once, with the models that caused it and without the name of their kind."""
    said: dict[str, list[str]] = {}
    for name in names:
        for value in results.get(name, {}).values():
            if isinstance(value, str):
                kind = f"({(POLICIES.get(name) or REWARDS[name]).kind})"
                said.setdefault(value.replace(kind, "(KIND)"), []).append(name)
    for message, who in said.items():
        yield f"\n{title}: {', '.join(who)}\n\n> {message.replace('|', chr(92) + '|')}\n"


if __name__ == "__main__":
    print(page(), end="")
