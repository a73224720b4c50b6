"""Writes the model card of an exported version: README.md with front matter for the Hugging Face hub."""

import json
from collections.abc import Mapping
from typing import Any

from bonbon.engines.engine import VersionKind
from bonbon.files.manifest import MANIFEST
from bonbon.registry.evaluation_figures import evaluation_figures
from bonbon.registry.transfer.exported_version import EVALUATION, RECORD, Record

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank."""
ADAPTER_USE = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = "{base}"
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), "path/of/this/directory")
```

vLLM:

```
vllm serve {base} --enable-lora --max-lora-rank {rank} \\
    --lora-modules {version}=path/of/this/directory --generation-config vllm
```
"""
WHOLE_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/of/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/of/this/directory", dtype="auto")
```

vLLM: `vllm serve path/of/this/directory --served-model-name {version} --generation-config vllm`
"""


def model_card(record: Record, evaluation: Mapping[str, Any], *, rank: int | None = None) -> str:
    """Returns the card's text.

    Args:
        rank: The adapter's highest rank; None for whole weights.
    """
    return f"---\n{_front_matter(record, evaluation)}---\n\n{_body(record, evaluation, rank)}"


def _front_matter(record: Record, e: Mapping[str, Any]) -> str:
    is_adapter = record.kind is VersionKind.ADAPTER
    method = _method(record)
    own = {
        "version": record.version,
        "base": record.base,
        "base_digest": record.base_digest,
        "method": method,
        "k": record.k,
        "n": e.get("n"),
        "win_rate": _interval(e.get("win_rate")),
        "kl": _interval(e.get("kl")),
        "kl_estimator": e.get("kl_estimator"),
        "evaluation": EVALUATION if e else None,
    }
    fields = {
        "base_model": record.base_hub_name or record.base,
        "base_model_relation": "adapter" if is_adapter else "finetune",
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bonbon", "best-of-n", *(["lora"] if is_adapter else [])],
        "bonbon": {name: value for name, value in own.items() if value is not None},
    }
    # JSON is valid YAML and quotes what needs quoting.
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items())


def _body(record: Record, evaluation: Mapping[str, Any], rank: int | None) -> str:
    base = record.base_hub_name or record.base
    what = {
        VersionKind.ADAPTER: f"A LoRA adapter on `{base}`",
        VersionKind.FULL: f"Whole weights, trained from `{base}`",
    }[record.kind]
    if record.merged:
        what = f"Whole weights: a LoRA adapter merged into `{base}`"
    answers = "one draw" if record.k == 1 else f"the best of {record.k} draws, chosen by the reward"
    use = ADAPTER_USE if record.kind is VersionKind.ADAPTER else WHOLE_USE
    max_rank = next((supported for supported in VLLM_RANKS if supported >= (rank or 0)), rank)
    parts = [
        f"# {record.version}",
        f"{what}, distilled from best-of-n answers by bonbon ({_method(record)}), whose method builds on "
        "[BoNBoN](https://arxiv.org/abs/2406.00832). "
        f"According to its evaluation, it should answer with {answers}.",
        "## Evaluation",
        _table(evaluation, record.k) if evaluation else "It was not evaluated.",
        _verdict(record.verdict),
        "## Use",
        use.format(base=base, rank=max_rank, version=record.version).rstrip(),
        _best_of_k(record.k),
        f"The base must be the one that the version was trained from. Its digest, which bonbon computes from the files "
        f"that determine its output, is `{record.base_digest or 'unknown'}`.",
        f"`{MANIFEST}` has the size and SHA-256 of every file of the model, `{EVALUATION}` all measurements, "
        f"and `{RECORD}` what the version was trained from. `bonbon models import` registers this directory elsewhere.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(evaluation: Mapping[str, Any], k: int) -> str:
    rows = ["| | value | 95 % interval | against or by |", "|-|-:|-:|-|"]
    rows += [
        f"| {figure.title} | {' | '.join(figure.shown)} | {figure.note} |"
        for figure in evaluation_figures(evaluation, k)
    ]
    prompts, reward = evaluation.get("prompts"), evaluation.get("reward")
    if prompts is None or reward is None:
        return "\n".join(rows)
    return "\n".join(rows) + f"\n\nMeasured on {prompts} prompts that were not trained on, by the reward `{reward}`."


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return "No gate has judged it."
    if verdict.get("passed"):
        return "The gate passed it."
    return "**The gate refused it:** its evaluation does not show that it is as good as it had to be."


def _best_of_k(k: int) -> str:
    if k == 1:
        return ""
    return (
        f"According to its evaluation, the best of {k} draws is as good as best-of-n, and one draw is not. Serve it "
        f"with bonbon, or draw {k} answers for each prompt, score them with the reward and keep the best."
    )


def _method(record: Record) -> str:
    settings = record.training.get("settings") or {}
    loss, method = settings.get("loss"), settings.get("method")
    return ", ".join(str(part) for part in (loss, method) if part) or "unknown"


def _interval(measured: Any) -> Any:
    if isinstance(measured, Mapping):
        return {name: measured.get(name) for name in ("value", "low", "high")}
    return measured
