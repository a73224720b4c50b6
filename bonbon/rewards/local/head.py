"""Selects which output of a sequence-classification model is the score, and what it means."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from bonbon.errors import UserError

Output = Literal["auto", "logit", "logprob"]


@dataclass(frozen=True, slots=True)
class Head:
    """`label` is the output to use, None where there is only one. With `reads_logit`, that output is the score itself.

    Otherwise the score is the output's log-probability among all outputs.
    """

    label: int | None
    reads_logit: bool

    def values(self, logits: Tensor) -> list[float]:
        """Returns one number for each row of [batch, outputs]."""
        return (logits if self.reads_logit else logits.log_softmax(-1))[:, self.label or 0].tolist()


def choose_head(config: Any, label: int | str | None, output: Output) -> Head:
    """Returns the head for a model with this configuration that the options `label` and `output` select.

    Raises UserError when the model has several outputs, and neither options nor configuration tell which one is the
    score, or what it means.
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
        raise UserError(f"label = {label!r} is not a label of the reward model; use one of {_listed(names)}")
    return index


def _reads_logit(config: Any, label: int | None, output: Output) -> bool:
    """Returns whether the score is an output itself, instead of a log-probability among all outputs."""
    if label is None:
        if output == "logprob":
            raise UserError("output = 'logprob' always gives 0 for a reward model with one output: leave it out")
        return True
    if output != "auto":
        return output == "logit"
    problem = config.problem_type
    if problem is None:
        raise UserError(
            f"the reward model has {len(config.id2label)} outputs, and its config.json has no problem_type that "
            "tells what they mean: set `output` to 'logit' when each is an independent score, or to 'logprob' when "
            "they are mutually exclusive classes",
            param="reward",
        )
    return bool(problem != "single_label_classification")


def _listed(names: dict[int, str]) -> str:
    return ", ".join(f"{index} ({name})" for index, name in sorted(names.items()))
