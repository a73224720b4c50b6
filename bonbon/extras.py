"""Checks for optional dependencies, and names the command that installs them."""

from importlib.util import find_spec

from bonbon.errors import UserError

DISTRIBUTION = "bonbon-serve"
"""The name of the package on PyPI, where `bonbon` is another project."""

TRAINING = ("torch", "transformers", "peft", "safetensors", "accelerate", "tensorboard", "matplotlib", "jinja2")
"""What the extra `train` brings, and every command that trains needs."""


def install(extra: str) -> str:
    """Returns the command that installs the extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def need(what: str, extra: str, *modules: str, param: str | None = None) -> None:
    """Raises UserError, naming the command to run, unless all modules are installed; imports none of them."""
    if missing := [module for module in modules if not _is_there(module)]:
        raise UserError(f"{what} needs {', '.join(missing)}: run {install(extra)}", param=param)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # The parent package is missing, or is blocked in `sys.modules`.
        return False
