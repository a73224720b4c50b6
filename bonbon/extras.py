"""What to install where a part of bonbon needs more than is there."""

from importlib.util import find_spec

from bonbon.errors import UserError

DISTRIBUTION = "bonbon-serve"
"""The name to install by: `bonbon` is another project's on PyPI."""

TRAINING = ("torch", "transformers", "peft", "safetensors", "accelerate", "tensorboard", "matplotlib", "jinja2")
"""What the extra `train` brings, and every command that trains needs."""


def install(extra: str) -> str:
    """The command that installs what an extra names."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def need(what: str, extra: str, *modules: str, param: str | None = None) -> None:
    """Raise UserError, saying what to install, unless all modules are there; none of them is imported."""
    if missing := [module for module in modules if not _is_there(module)]:
        raise UserError(f"{what} needs {', '.join(missing)}, not installed here: {install(extra)}", param=param)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # its package is missing, or is blocked in `sys.modules`
        return False
