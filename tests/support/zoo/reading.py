"""Scores texts with transformers alone, to compare with a reward of the zoo."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bonbon.prompt import Message, Prompt
from tests.support.zoo.rewards import Head

SYSTEM: Message = {"role": "system", "content": "Be brief."}
QUESTION: Message = {"role": "user", "content": "Where is my order?"}
PROMPT = Prompt.chat(QUESTION)
SHORT = ("It is on its way.", "Sorry!", "Thanks a lot for your patience, please wait.")
TEXTS = [*SHORT, "We are sorry for the delay; please wait. " * 30]
"""The last text is longer than any of the models' contexts."""


@torch.inference_mode()
def expected_scores(head: Head, directory: Path) -> list[float]:
    """Returns the scores of the short texts, each computed alone without padding or truncation."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    scores = []
    for reply in SHORT:
        if tokenizer.chat_template:
            turns = [QUESTION, {"role": "assistant", "content": reply}]
            rendered = tokenizer.apply_chat_template(turns, tokenize=False)
            inputs = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
        else:
            inputs = tokenizer(QUESTION["content"], reply, return_tensors="pt")
        if head.segments is False:
            inputs.pop("token_type_ids", None)
        logits = model(**inputs).logits[0].float()
        scores.append(float((logits.log_softmax(-1) if head.logprob else logits)[head.index]))
    return scores
