"""Compiles grammars in a process of its own, which may crash.

Clients write the JSON schemas, and some schemas take minutes, gigabytes, or more stack than there is. The process reads
a line of JSON from its standard input that describes the tokenizer, and then one line for each grammar. It answers each
with a line of JSON: what is wrong, or an empty text. The parent kills the process when an answer does not come in time.
It imports nothing of bonbon, so that it starts quickly.
"""

import json
import sys
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MEMORY = 1 << 30
"""The bytes of address space that a grammar may take."""
STACK = 4 << 20
"""The maximum bytes of stack: half of a thread's, so that a grammar that passes here does not overflow a thread's
stack."""
MAX_ERROR_LENGTH = 2000
"""The maximum number of characters of an answer."""


def limits() -> LLParserLimits:
    """Returns the limits for one token's mask, about 10 ms, because a slow mask delays every candidate of the batch."""
    return LLParserLimits(step_lexer_fuel=100_000, step_max_items=20_000, max_lexer_states=20_000, verbose_errors=False)


def read_tokenizer(description: dict[str, Any]) -> LLTokenizer:
    """Returns the tokenizer in llguidance's form. Raises ValueError when llguidance cannot read it.

    Args:
        description: `tokenizer` is the text of a tokenizer.json, `vocabulary` the number of token ids, and `ends` the
            ids that end a text.
    """
    return LLTokenizer(description["tokenizer"], n_vocab=description["vocabulary"], eos_token=description["ends"])


def error_of(tokenizer: LLTokenizer, grammar: str) -> str:
    """Returns what is wrong with a grammar, or an empty text."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()[:MAX_ERROR_LENGTH]


def main() -> None:
    """Reads the tokenizer, answers with an empty text, and then answers each grammar."""
    tokenizer = read_tokenizer(json.loads(sys.stdin.readline()))
    _limit()
    print('""', flush=True)
    for line in sys.stdin:
        print(json.dumps(error_of(tokenizer, json.loads(line))), flush=True)


def _limit() -> None:
    if sys.platform == "win32":
        return
    import resource

    for resource_id, limit in (
        (resource.RLIMIT_AS, _size() + MEMORY),
        (resource.RLIMIT_STACK, STACK),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(resource_id)[1]
        resource.setrlimit(resource_id, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _size() -> int:
    """Returns the bytes of address space of this process, or a very large number on systems other than Linux."""
    if sys.platform != "linux":
        return 1 << 40
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    import resource

    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
