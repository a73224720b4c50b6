"""Whether training can go on from a version with the settings that there are."""

from pathlib import Path

from bonbon.engines.adapters.base_check import adapted_and_shared
from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.settings import TrainSettings


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
    elif settings.method == "full" and (shared := adapted_and_shared(base, start.directory)):
        raise UserError(
            f"train.method = 'full' cannot go on from {start.name}: its adapter is on {shared}, whose weights the "
            "model's input and output share, so that merging it would change both; set train.method = 'lora', or "
            "start from the base (bonbon train --version)",
            param="train.method",
        )
