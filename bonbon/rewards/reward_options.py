"""The base class of the options of rewards, and the message about invalid ones."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from bonbon.errors import UserError
from bonbon.shown_values import describe_problems


class Options(BaseModel):
    """The options of one kind of reward; unknown options are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    @classmethod
    def read(cls, kind: str, options: Mapping[str, Any]) -> Self:
        """Returns the validated options.

        Raises UserError naming every invalid option, without values that may be secrets.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            unknown = f"there is no such option; the options are {', '.join(cls.model_fields)}"
            raise UserError(f"reward {kind}: {describe_problems(error, unknown=unknown)}", param="reward") from error
