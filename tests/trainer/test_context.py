"""Tests of the settings that a run derives from its engine."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.data.loop_world import make_settings
from tests.support.data.sampled_groups import make_base
from trainer.context import open_context


@pytest.mark.parametrize(
    ("train", "engine", "chosen"),
    [
        ({}, "embedded", True),
        ({}, "fake", False),
        ({"lora_targets": "q_proj"}, "embedded", False),
        ({"lora_output_layer": False}, "embedded", False),
        ({"lora_output_layer": True, "lora_targets": "q_proj"}, "fake", True),
        ({"method": "full"}, "embedded", None),
    ],
)
async def test_the_output_layer_is_adapted_where_the_engine_serves_that(
    train: dict[str, Any], engine: str, chosen: bool | None, tmp_path: Path
) -> None:
    settings = make_settings(
        make_base(tmp_path / "base"), tmp_path / "data", engine=engine, engine_options={}, train=train
    )
    async with open_context(settings, progress=False) as context:
        assert (await context.training_settings()).train.lora_output_layer == chosen
        assert context.settings.train.lora_output_layer == train.get("lora_output_layer")


@pytest.mark.parametrize("recorded", [{}, {"lora_output_layer": False}, {"lora_output_layer": True}])
async def test_a_run_that_has_begun_keeps_its_choice(recorded: dict[str, bool], tmp_path: Path) -> None:
    """The record of an earlier release has no choice, because its adapters never were on the output layer."""
    settings = make_settings(make_base(tmp_path / "base"), tmp_path / "data")
    async with open_context(settings, progress=False) as context:
        chosen = (await context.training_settings({"train": recorded})).train.lora_output_layer
    assert chosen == recorded.get("lora_output_layer", False)
