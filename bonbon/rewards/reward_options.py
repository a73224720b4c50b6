"""What a kind's options are made of: a pydantic model each, and one way to say what is wrong with them."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from bonbon.errors import UserError
from bonbon.shown_values import shown_input


class Options(BaseModel):
    """Options of one kind of reward; unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    @classmethod
    def read(cls, kind: str, options: Mapping[str, Any]) -> Self:
        """Raises UserError naming every bad option. Values of unknown ones are not shown: they may be secrets."""
        try:
            return cls(**options)
        except ValidationError as error:
            problems = "; ".join(_problem(item, cls) for item in error.errors())
            raise UserError(f"reward {kind}: {problems}", param="reward") from error


def _problem(item: Any, options: type[Options]) -> str:
    where, what = ".".join(map(str, item["loc"])), item["msg"]
    if item["type"] == "extra_forbidden":
        return f"{where} is no option; the options are {', '.join(options.model_fields)}"
    if item["type"] == "missing":
        return f"{where} is required"
    if not where:
        return str(what)
    return f"{where}{shown_input(item)}: {what}"
