"""A reward in Python: any function that gives one number per completion, higher is better.

Start the service with it from this directory:

    bonbon serve --model path/or/hub-name --reward python:python_reward:score
"""

import re
from collections.abc import Sequence

from bonbon import Prompt

APOLOGIES = re.compile(r"\b(sorry|apologi[sz]e)\b", re.IGNORECASE)


def score(prompt: Prompt, completions: Sequence[str]) -> list[float]:
    """Prefer answers of about 25 words that do not apologise more than once."""
    return [-abs(len(text.split()) - 25) / 25 - max(0, len(APOLOGIES.findall(text)) - 1) for text in completions]
