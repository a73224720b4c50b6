"""`bonbon init`: writes a bonbon.toml that explains every setting."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from bonbon.errors import UserError
from bonbon.settings import Section, Settings

HEAD = """# Settings of bonbon, which reads this file from its working directory.
#
# A line such as "# n = 8" shows a default: remove the "#" to change the value. If nothing follows the "=", the setting
# has no default. Run `bonbon doctor` to check your settings. Environment variables (BONBON_MODEL, BONBON_SERVICE__PORT)
# and arguments of the command override this file.
"""


def init(
    model: Annotated[str, typer.Option(help="The base model: a directory in Hugging Face format, or a hub name.")],
    reward: Annotated[
        str, typer.Option(help="The reward: the directory or hub name of a model, a URL, or kind:target.")
    ],
    path: Annotated[Path, typer.Option(help="The file to write.")] = Path("bonbon.toml"),
) -> None:
    """Write a bonbon.toml that sets the model and the reward and explains every other setting with its default."""
    text = settings_file(model=model, reward=reward)
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{path} already exists: delete it, or name another file with --path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file with --path") from error
    typer.echo(f"Wrote {path}. Check it with `bonbon doctor`, then start the service with `bonbon serve`.")


def settings_file(**given: str) -> str:
    """Returns the text of a settings file that sets the values in `given`."""
    return HEAD + "".join(_section(Settings, given))


def _section(section: type[BaseModel], given: dict[str, str], path: str = "") -> Iterator[str]:
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            nested.append((f"{path}{name}", kind))
            continue
        yield "\n" + textwrap.indent(textwrap.fill(" ".join((field.description or "").split()), 110), "# ") + "\n"
        if name in given and not path:
            yield f"{name} ={_toml(given[name])}\n"
        else:
            yield f"# {name} ={_toml(field.get_default(call_default_factory=True))}\n"
    for name, kind in nested:
        yield (
            f"\n\n[{name}]\n" + textwrap.indent(textwrap.fill(" ".join((kind.__doc__ or "").split()), 110), "# ") + "\n"
        )
        yield from _section(kind, given, f"{name}.")


def _toml(value: Any) -> str:
    """Returns what follows the "=": the value as TOML, or nothing if there is no value."""
    return "" if value is None else f" {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value), ensure_ascii=False)
