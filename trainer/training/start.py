"""Checks whether training can continue from a version with the given settings."""

from pathlib import Path

from bonbon.engines.adapters.base_check import adapted_and_shared
from bonbon.engines.engine import VersionFiles, VersionKind
from bonbon.errors import UserError
from bonbon.settings import TrainSettings


def check_start(base: Path, start: VersionFiles | None, settings: TrainSettings) -> None:
    """Raises UserError when `train.method` cannot continue from `start` (None: the base). Does not read any weights.

    A version with whole weights cannot be given an adapter. An adapter on embeddings that are tied to the model's
    output cannot be merged: it changes either the input or the output, and merged weights would change both.
    """
    if start is None or start.kind is VersionKind.BASE:
        return
    if start.kind is VersionKind.FULL:
        if settings.method == "lora":
            raise UserError(
                f"train.method = 'lora' cannot continue from {start.name}: it has whole weights, and an adapter "
                "trained on it would not fit the base it is served with; set train.method = 'full'",
                param="train.method",
            )
    elif settings.method == "full" and (shared := adapted_and_shared(base, start.directory)):
        raise UserError(
            f"train.method = 'full' cannot continue from {start.name}: its adapter is on {shared}, whose weights the "
            "model's input and output share, so that merging it would change both; set train.method = 'lora', or "
            "start from the base (bonbon train --version); with train.lora_output_layer = false, later versions can be "
            "continued",
            param="train.method",
        )
