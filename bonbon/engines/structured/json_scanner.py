"""Finds the end of a JSON value in a text that is still being written."""

SPACE = " \t\r\n"
MARK = "<"
"""The first character of the marks that end a call, which JSON contains only in strings."""


class JsonScanner:
    """Follows one object, array or string from its first character to its last, however the text is cut into pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.over = False

    def scan(self, text: str, start: int = 0) -> int:
        """Returns how many characters from `start` belong to the value. Then `over` is whether it ends with them.

        A broken value, whose brackets are not closed, ends before a mark.
        """
        for at in range(start, len(text)):
            character = text[at]
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
            elif character == MARK:
                self.over = True
                return at - start
            if self._depth <= 0 and not self._in_string:
                self.over = True
                return at + 1 - start
        return len(text) - start
