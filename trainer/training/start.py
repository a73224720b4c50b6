"""Whether training can go on from a version with the settings that there are."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from bonbon.engines.adapter import WEIGHTS
from bonbon.engines.base import VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.settings import TrainSettings
from trainer.training.targets import without_weights


def check_start(base: Path, start: VersionFiles | None, settings: TrainSettings) -> None:
    """Raise UserError where `train.method` cannot go on from `start` (None: the base). Reads no weights.

    A version with weights of its own takes no adapter. An adapter on embeddings that the model's output shares cannot
    be merged: it changes the input alone, or the output alone, and the merged weights would change both.
    """
    if start is None or start.kind is VersionKind.BASE:
        return
    if start.kind is VersionKind.FULL:
        if settings.method == "lora":
            raise UserError(
                f"train.method = 'lora' cannot go on from {start.name}: it has weights of its own, and an adapter "
                "trained on it would not fit the base it is served with; set train.method = 'full'",
                param="train.method",
            )
    elif settings.method == "full" and (shared := _adapted_and_shared(base, start.directory)):
        raise UserError(
            f"train.method = 'full' cannot go on from {start.name}: its adapter is on {shared}, whose weights the "
            "model's input and output share, so that merging it would change both; set train.method = 'lora', or "
            "start from the base (bonbon train --version)",
            param="train.method",
        )


def _adapted_and_shared(base: Path, adapter: Path) -> str:
    """The embeddings or the output layer that the adapter is on and that share their weights; empty: there are none."""
    model = without_weights(AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False))
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    if written is None or read.weight is not written.weight:
        return ""
    shared = [name for name, module in model.named_modules() if module is read or module is written]
    try:
        with safe_open(adapter / WEIGHTS, framework="pt") as file:
            weights = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{adapter / WEIGHTS} cannot be read ({error}); restore the version's files") from error
    return ", ".join(name for name in shared if any(f".{name}.lora_" in weight for weight in weights))
