"""Configures accelerate, which distributes a run's work over its processes, from the run's settings."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn

from bonbon.settings import TrainSettings


def make_accelerator(config: TrainSettings) -> Accelerator:
    """Returns the accelerator of this process, which runs alone or under a launcher."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = several and not torch.cuda.is_available()
    plugin = _fully_sharded() if several and config.sharding == "full" else None
    # Without `cpu`, several processes on a machine without a GPU would not find each other.
    accelerator = Accelerator(mixed_precision=_precision(config), cpu=on_cpu, fsdp_plugin=plugin)
    if plugin is not None and on_cpu:
        # On CPUs accelerate silently ignores the plugin and would replicate the model.
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def name_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Sets the classes that a sharded run wraps as units, before the model is prepared.

    They are the classes that the model lists for this purpose and contains; multimodal models list some that are
    absent.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        named: set[str] = set(getattr(model, "_no_split_modules", None) or ())
        plugin.transformer_cls_names_to_wrap = sorted(named & {type(module).__name__ for module in model.modules()})


def _fully_sharded() -> FullyShardedDataParallelPlugin:
    """Returns the plugin for FSDP2 with one unit per transformer layer, whose class the model names."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )


def _precision(config: TrainSettings) -> str:
    if config.precision == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return config.precision
