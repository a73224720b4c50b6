"""Names the fields of a request in errors as the client's endpoint names them."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bonbon.errors import UserError

INDEX = re.compile(r"\[\d+\]")
QUOTED = r"(?<!\w)'[^']*'(?!\w)" + '|"[^"]*"'
"""Matches what a message quotes, which may be the client's own text."""


@contextmanager
def naming_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Renames fields in the parameter and the message of every UserError in the block.

    Args:
        names: The client's names of fields, by their names in chat completions. `[]` stands for any index. What follows
            a field in a path is kept, and the longest name that fits is renamed.
    """
    try:
        yield
    except UserError as error:
        if names:
            if error.param is not None:
                error.param = _renamed(error.param, names)
            error.args = (_renamed(str(error), names), *error.args[1:])
        raise


def _renamed(text: str, names: Mapping[str, str]) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    fields = "|".join(re.escape(name).replace(r"\[\]", INDEX.pattern) for name in longest_first)

    def new(found: re.Match[str]) -> str:
        if found["quoted"]:
            return found[0]
        name = names[INDEX.sub("[]", found[0])]
        for index in INDEX.findall(found[0]):
            name = name.replace("[]", index, 1)
        return name

    return re.sub(rf"(?P<quoted>{QUOTED})|(?<![\w.])(?:{fields})(?!\w)", new, text)
