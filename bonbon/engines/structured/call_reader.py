"""Reads tool calls from a candidate's text while it is written."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

from bonbon.engines.structured.json_scanner import SPACE, JsonScanner
from bonbon.engines.structured.tool_format import ToolFormat
from bonbon.tools import ToolCallDelta

HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{\[])')
"""Matches the beginning of a call's object up to its arguments, which can be streamed from there on."""
NAME = re.compile(r"([a-zA-Z0-9_.-]{1,64})(?:\[ARGS\])?\s*(?=\{)")
"""Matches a function's name before its arguments."""
NAME_BEGUN = re.compile(r"[a-zA-Z0-9_.-]{1,64}(?:\[A?R?G?S?\]?)?\s*")
LONGEST_HEAD = 512
"""The maximum length of what HEAD and NAME match, so that each piece of a long text takes the same time to read."""
BLANK = re.compile(rf"[{SPACE}]*")
INSIGNIFICANT = re.compile(rf"[{SPACE},:+.\w-]*")
"""Matches what may stand between the strings, arrays and objects of an object: separators, keywords and numbers."""


class CallReader:
    """Takes a candidate's text in pieces, and returns the content and the calls in it.

    The result depends only on the text, not on how it was cut into pieces. Text that resembles a call but is not one,
    because its JSON is broken or names no function, stays content. So does the text after a call, except for white
    space around calls. A call that is truncated within its arguments has the part of them that was written.

    Args:
        tool_format: The format in which the model writes calls.
    """

    def __init__(self, tool_format: ToolFormat) -> None:
        self._format = tool_format
        self._buffer, self._at = "", 0
        """Text that no step has taken yet begins at `_at`. A step leaves no more than LONGEST_HEAD characters for the
        next piece."""
        self._begun = False
        """Whether there has been content or a call."""
        self._opened: list[str] = []
        """The text taken for the beginning of a call, which becomes content if it proves not to be one."""
        self._written: list[str] = []
        """The part of a call's object that was taken before its end."""
        self._calls = 0
        self._listed = False
        self._scanner, self._scanned = JsonScanner(), 0
        """The scanner of the JSON that the step reads, and how many characters after `_at` it has seen."""
        self._content: list[str] = []
        self._deltas: list[ToolCallDelta] = []
        self._step: Callable[[bool], bool] = self._text

    def read(self, text: str, *, final: bool = False) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Returns the content and the next piece of each call, as far as they are certain.

        No text may follow after `final`.
        """
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        while self._step(final):
            pass
        content, deltas = "".join(self._content), tuple(self._deltas)
        self._content, self._deltas = [], []
        return content, deltas

    # Each step takes what it can from the buffer, and returns whether there may be more to take.

    def _text(self, final: bool) -> bool:
        """Reads content, up to the beginning of a call."""
        if self._format.bare and not self._begun:
            self._opened.append(self._take_all(BLANK))
            if self._is_empty and not final:
                return False
            if self._follows("{"):
                return self._then(self._object)
            self._close()
        start = self._format.start
        found = self._buffer.find(start, self._at)
        if found < 0:
            held = 0 if final else _held(self._buffer[-len(start) :], start)
            self._add_content(self._take(len(self._buffer) - self._at - held))
            return False
        self._add_content(self._take(found - self._at))
        self._opened = [self._take(len(start))]
        return self._then(self._first)

    def _first(self, final: bool) -> bool:
        """Reads what follows the text that begins calls."""
        self._opened.append(self._take_all(BLANK))
        if self._is_empty and not final:
            return False
        if self._follows("{"):
            return self._then(self._object)
        if self._format.name == "mistral":
            if self._follows("[") and not self._listed:
                self._listed = True
                self._opened.append(self._take(1))
                return True
            most = self._at + LONGEST_HEAD
            if name := NAME.match(self._buffer, self._at, most):
                self._at = name.end()
                self._call(name[1])
                return self._then(self._arguments_alone)
            if not final and len(self._buffer) < most and NAME_BEGUN.fullmatch(self._buffer, self._at):
                return False
        return self._give_up()

    def _object(self, final: bool) -> bool:
        """Reads the object of a call, from its opening brace."""
        if not self._written and (head := HEAD.match(self._buffer, self._at, self._at + LONGEST_HEAD)):
            self._at = head.end()
            self._call(_string(head[1]))
            return self._then(self._arguments)
        self._scanned += self._scanner.scan(self._buffer, self._at + self._scanned)
        over = self._scanner.over or final
        if over or self._written or self._scanned >= LONGEST_HEAD:
            self._written.append(self._take(self._scanned))
            self._scanned = 0
        if not over:
            return False
        written, self._written = "".join(self._written), []
        called = _called(written)
        if called is None:
            self._opened.append(written)
            return self._give_up()
        name, arguments = called
        self._call(name)
        self._add_arguments(arguments)
        return self._then(self._next)

    def _arguments(self, final: bool) -> bool:
        """Reads the arguments within a call's object."""
        self._add_arguments(self._take_value())
        return self._scanner.over and self._then(self._rest)

    def _arguments_alone(self, final: bool) -> bool:
        """Reads the arguments of a call that is not written as an object."""
        self._add_arguments(self._take_value())
        return self._scanner.over and self._then(self._next)

    def _rest(self, final: bool) -> bool:
        """Skips what a call's object has after its arguments, such as an id, up to its closing brace."""
        self._take_all(INSIGNIFICANT)
        if self._is_empty:
            return False
        if self._follows('"', "{", "["):
            return self._then(self._skipped)
        if self._follows("}"):
            self._take(1)
        return self._then(self._next)

    def _skipped(self, final: bool) -> bool:
        """Skips a string, an array or an object after the arguments."""
        self._take_value()
        return self._scanner.over and self._then(self._rest)

    def _next(self, final: bool) -> bool:
        """Reads what follows a call: its end, another call, or content."""
        self._opened.append(self._take_all(BLANK))
        if self._is_empty:
            return False
        if self._follows(*(",]" if self._listed else ";" if self._format.bare else "")):
            self._take(1)
            self._opened = []
            return True
        if self._follows("{") and (self._listed or self._format.bare):
            return self._then(self._object)
        if self._format.end and self._follows(self._format.end):
            self._take(len(self._format.end))
            self._opened = []
            return True
        if self._follows(self._format.start):
            self._opened.append(self._take(len(self._format.start)))
            self._listed = False
            return self._then(self._first)
        marks = self._format.start, self._format.end
        ahead = self._buffer[self._at : self._at + max(map(len, marks))]
        if any(mark.startswith(ahead) for mark in marks):
            if final:  # The text was truncated within a mark.
                self._at = len(self._buffer)
            return False
        self._close()
        return self._then(self._text)

    def _then(self, step: Callable[[bool], bool]) -> bool:
        self._step, self._scanner, self._scanned = step, JsonScanner(), 0
        return True

    @property
    def _is_empty(self) -> bool:
        return self._at == len(self._buffer)

    def _follows(self, *texts: str) -> bool:
        return self._buffer.startswith(texts, self._at)

    def _take(self, size: int) -> str:
        taken = self._buffer[self._at : self._at + size]
        self._at += size
        return taken

    def _take_all(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._buffer, self._at)
        return self._take(found.end() - self._at if found else 0)

    def _take_value(self) -> str:
        """Takes the JSON value that the scanner follows, as far as it is written."""
        return self._take(self._scanner.scan(self._buffer, self._at))

    def _add_content(self, text: str) -> None:
        if text:
            self._begun = True
            self._content.append(text)

    def _close(self) -> None:
        """Turns what was taken for the beginning of a call into content."""
        self._add_content("".join(self._opened))
        self._opened = []

    def _give_up(self) -> bool:
        """Turns what was taken for a call into content, and reads on."""
        self._close()
        self._listed = False
        return self._then(self._text) and not self._is_empty

    def _call(self, name: str) -> None:
        self._begun = True
        self._opened = []
        self._deltas.append(ToolCallDelta(self._calls, self._format.new_id(), name))
        self._calls += 1

    def _add_arguments(self, arguments: str) -> None:
        index = self._calls - 1
        if not arguments:
            return
        if (
            self._deltas and self._deltas[-1].index == index
        ):  # One piece per call, because OpenAI's clients accept no more at a time.
            last = self._deltas.pop()
            self._deltas.append(replace(last, arguments=last.arguments + arguments))
        else:
            self._deltas.append(ToolCallDelta(index, arguments=arguments))


def _called(written: str) -> tuple[str, str] | None:
    """Returns the name and the arguments of a call's object, or None when it is not a call."""
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters"))
    if arguments is None and "arguments" not in found and "parameters" not in found:
        return None
    if isinstance(arguments, str):  # The arguments are JSON text within the JSON object.
        return found["name"], arguments
    return found["name"], json.dumps({} if arguments is None else arguments, ensure_ascii=False)


def _string(literal: str) -> str:
    try:
        return str(json.loads(literal, strict=False))
    except ValueError:
        return literal[1:-1]


def _held(text: str, mark: str) -> int:
    """Returns how many of the last characters may be the beginning of `mark`."""
    return max((size for size in range(1, len(mark)) if text.endswith(mark[:size])), default=0)
