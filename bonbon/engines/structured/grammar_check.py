"""Tries grammars out in a process of its own, which may die of them.

A client writes the JSON schema, and some schemas take minutes, gigabytes, or more stack than there is. The process
reads a line of JSON from its standard input that describes the tokenizer, and then one line for each grammar; it
answers each with a line of JSON: what is wrong, or an empty text. Whoever started it kills it when no answer comes in
time. It imports nothing of bonbon, so that it starts quickly.
"""

import json
import sys
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MEMORY = 1 << 30
"""Bytes of address space that a grammar may take."""
STACK = 4 << 20
"""Bytes: half of what threads have, so that a grammar that passes here does not overflow the stack of one."""
LONGEST = 2000
"""Characters of an answer."""


def limits() -> LLParserLimits:
    """What one token's mask may take, about 10 ms: more would hold up all that is drawn in the same batch."""
    return LLParserLimits(step_lexer_fuel=100_000, step_max_items=20_000, max_lexer_states=20_000, verbose_errors=False)


def read_tokenizer(description: dict[str, Any]) -> LLTokenizer:
    """The tokenizer in llguidance's form. Raises ValueError when llguidance cannot read it.

    Args:
        description: `tokenizer`, the text of a tokenizer.json; `vocabulary`, how many token ids there are; `ends`, the
            ids that end a text.
    """
    return LLTokenizer(description["tokenizer"], n_vocab=description["vocabulary"], eos_token=description["ends"])


def error_of(tokenizer: LLTokenizer, grammar: str) -> str:
    """What is wrong with a grammar; empty when nothing is."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()[:LONGEST]


def main() -> None:
    """Read the tokenizer, answer with an empty text, and then answer each grammar."""
    tokenizer = read_tokenizer(json.loads(sys.stdin.readline()))
    _limit()
    print('""', flush=True)
    for line in sys.stdin:
        print(json.dumps(error_of(tokenizer, json.loads(line))), flush=True)


def _limit() -> None:
    if sys.platform == "win32":
        return
    import resource

    for what, most in (
        (resource.RLIMIT_AS, _size() + MEMORY),
        (resource.RLIMIT_STACK, STACK),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _size() -> int:
    """Bytes of address space of this process; as many as there may be where Linux does not tell."""
    if sys.platform != "linux":
        return 1 << 40
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[0])
    import resource

    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
