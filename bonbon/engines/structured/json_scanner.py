"""Where a JSON value ends in a text that is still being written."""

SPACE = " \t\r\n"
MARK = "<"
"""What JSON has in strings only, and the marks that end a call begin with."""


class JsonScanner:
    """Follows one object, array or string, from its first character to its last, however the text is cut up."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self.over = False

    def scan(self, text: str) -> int:
        """How many of the next characters belong to the value. `over` says whether it ends with them.

        A broken value, whose brackets are not closed, ends before a mark.
        """
        for at, character in enumerate(text):
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
                return at
            if self._depth <= 0 and not self._in_string:
                self.over = True
                return at + 1
        return len(text)
