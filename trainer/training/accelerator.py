"""How the processes of a run share its work: accelerate, configured by the run's settings."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn

from bonbon.settings import TrainSettings


def make_accelerator(config: TrainSettings) -> Accelerator:
    """The accelerator of this process, which is alone or one of a launcher's."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = several and not torch.cuda.is_available()
    plugin = _fully_sharded() if several and config.sharding == "full" else None
    # Without `cpu`, several processes on a machine without GPU would not know of each other.
    accelerator = Accelerator(mixed_precision=_precision(config), cpu=on_cpu, fsdp_plugin=plugin)
    if plugin is not None and on_cpu:
        # On CPUs accelerate passes over the plugin, without a word, and would replicate the model.
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def name_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Say which classes the units of a sharded run have, before it is prepared: those that the model names for this
    and has. Models that read more than text name some that they have not."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        named: set[str] = set(getattr(model, "_no_split_modules", None) or ())
        plugin.transformer_cls_names_to_wrap = sorted(named & {type(module).__name__ for module in model.modules()})


def _fully_sharded() -> FullyShardedDataParallelPlugin:
    """FSDP2 with one unit a transformer layer, which the model itself names."""
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
