"""A reward as a service of its own, in any language and on any machine: one POST for the candidates of a prompt.

uvicorn --app-dir examples http_reward:app --port 9000
bonbon serve --model path/or/hub-name --reward http://127.0.0.1:9000/score
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Question(BaseModel):
    prompt: dict[str, Any]  # {"messages": [...]}, {"text": "..."} or {"token_ids": [...]}
    completions: list[str]


class Answer(BaseModel):
    scores: list[float]
    version: str = "1"  # change it whenever the same question may get other scores


@app.post("/score")
def score(question: Question) -> Answer:
    """Prefer answers that take up the words of the last message."""
    asked = set(question.prompt["messages"][-1]["content"].lower().split())
    return Answer(scores=[len(asked & set(text.lower().split())) / len(asked) for text in question.completions])
