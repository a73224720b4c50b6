"""Registers versions of the tiny policy while a service is running."""

from pathlib import Path

from bonbon.engines.engine import VersionKind
from bonbon.registry.registry import Registry
from bonbon.store.database import open_database


def database_url(environment: dict[str, str]) -> str:
    return f"sqlite+aiosqlite:///{environment['BONBON_DATA_DIR']}/bonbon.db"


async def register_adapter(environment: dict[str, str], base: Path, directory: Path, seed: int) -> str:
    """Registers a version with small random weights that the gate has not judged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(directory)
    async with open_database(database_url(environment)) as database:
        registry = Registry(database, Path(environment["BONBON_DATA_DIR"]) / "versions")
        version = await registry.register(
            base=base.name, parent=base.name, kind=VersionKind.ADAPTER, directory=directory, training={"seed": seed}
        )
    return version.name


async def approve(environment: dict[str, str], name: str) -> Path:
    """Approves the version, which the service then sees as the challenger, and returns the directory of its files."""
    async with open_database(database_url(environment)) as database:
        registry = Registry(database, Path(environment["BONBON_DATA_DIR"]) / "versions")
        return (await registry.approve(name, {"passed": True, "reasons": []})).directory
