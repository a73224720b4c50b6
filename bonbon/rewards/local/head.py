"""Which output of a sequence-classification model is the score, and what it is."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from bonbon.errors import UserError

Output = Literal["auto", "logit", "logprob"]


@dataclass(frozen=True, slots=True)
class Head:
    """`label`: which output is read, None where there is one; `reads_logit`: it is the score itself.

    Otherwise the score is the output's log-probability among all of them.
    """

    label: int | None
    reads_logit: bool

    def values(self, logits: Tensor) -> list[float]:
        """One number for each row of [batch, outputs]."""
        return (logits if self.reads_logit else logits.log_softmax(-1))[:, self.label or 0].tolist()


def choose_head(config: Any, label: int | str | None, output: Output) -> Head:
    """The head of the model with this configuration that the options `label` and `output` name.

    Raises UserError when the model has several outputs and options and configuration do not say which is the score, or
    what it is.
    """
    index = _label(config, label)
    return Head(index, _reads_logit(config, index, output))


def _label(config: Any, label: int | str | None) -> int | None:
    names: dict[int, str] = dict(config.id2label)
    if label is None:
        if len(names) == 1:
            return None
        raise UserError(f"the reward model has {len(names)} labels; set `label` to one of {_listed(names)}")
    if len(names) == 1 and label in (0, names[0]):
        return None
    index = next((i for i, name in names.items() if label in (i, name, str(i))), None)
    if index is None:
        raise UserError(f"label = {label!r} is none of the reward model's: {_listed(names)}")
    return index


def _reads_logit(config: Any, label: int | None, output: Output) -> bool:
    """Whether the score is an output by itself, and not a log-probability among all of them."""
    if label is None:
        if output == "logprob":
            raise UserError("output = 'logprob' is 0 for every text of a reward model with one output: leave it out")
        return True
    if output != "auto":
        return output == "logit"
    problem = config.problem_type
    if problem is None:
        raise UserError(
            f"the reward model has {len(config.id2label)} outputs, and its config.json has no problem_type that says "
            "what they are: set `output` to 'logit' when each is a score of its own, or to 'logprob' when they are "
            "classes that exclude each other",
            param="reward",
        )
    return bool(problem != "single_label_classification")


def _listed(names: dict[int, str]) -> str:
    return ", ".join(f"{index} ({name})" for index, name in sorted(names.items()))
