"""Losses on a batch of best-of-n pairs, as pure functions of summed log-probabilities.

"BoNBoN" is Gui, Garbacea and Veitch, arXiv 2406.00832; "IPO" Azar et al., arXiv 2310.12036; "DPO" Rafailov et al.,
arXiv 2305.18290. Log-probabilities are in nats, summed over a completion's tokens: a mean over tokens is another loss,
to which the closed-form target does not belong.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

EULER_GAMMA = -float(torch.digamma(torch.tensor(1.0, dtype=torch.float64)))
BONBON_ALPHA, PAPER_ALPHA = 0.8, 0.005


class PairLogprobs(NamedTuple):
    """One batch, every field of shape [batch].

    `chosen` and `rejected` are under the policy, the other two under the reference policy; `n` is how many candidates
    each pair is the best and worst of.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    n: Tensor

    @property
    def margin(self) -> Tensor:
        """log pi/pi_0 (chosen) - log pi/pi_0 (rejected), [batch]."""
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)


class LossTerms(NamedTuple):
    """Scalars. Only `loss` carries a gradient; the others are for reports.

    `sft` is the mean of -log pi(chosen), `contrast` the loss's own contrast term before its weight, `target` the mean
    of the pairs' closed-form margins.
    """

    loss: Tensor
    sft: Tensor
    contrast: Tensor
    margin: Tensor
    target: Tensor
    chosen_logprob: Tensor
    rejected_logprob: Tensor


Loss = Callable[[PairLogprobs], LossTerms]


def targets(n: Tensor) -> Tensor:
    """`bonbon.theory.pair_target` of each n, [batch], float32: (n - 1) H_(n-1), where H_(n-1) = digamma(n) + gamma."""
    n = n.double()
    return ((n - 1) * (torch.digamma(n) + EULER_GAMMA)).float()


def target_variances(n: Tensor) -> Tensor:
    """`bonbon.theory.pair_target_variance` of each n, [batch], float32: sum_(k<n) 1/k^2 = pi^2/6 - trigamma(n)."""
    n = n.double()
    return ((n - 1) ** 2 * (math.pi**2 / 6 - torch.polygamma(1, n))).float()


def bonbon(pairs: PairLogprobs, alpha: float = BONBON_ALPHA) -> LossTerms:
    """alpha SFT + (1 - alpha) IPO / Var: BoNBoN with each contrast in units of its own variance.

    The division makes alpha mean the same at every n: best-of-n itself leaves a contrast of exactly 1.
    """
    contrast = (_squared_error(pairs) / target_variances(pairs.n)).mean()
    return _terms(pairs, alpha * _sft(pairs) + (1 - alpha) * contrast, contrast)


def paper(pairs: PairLogprobs, alpha: float = PAPER_ALPHA) -> LossTerms:
    """alpha SFT + (1 - alpha) IPO, as printed (BoNBoN, section 4)."""
    contrast = _squared_error(pairs).mean()
    return _terms(pairs, alpha * _sft(pairs) + (1 - alpha) * contrast, contrast)


def sft(pairs: PairLogprobs) -> LossTerms:
    """-log pi(chosen). The contrast of `bonbon` is reported, not trained on."""
    contrast = (_squared_error(pairs) / target_variances(pairs.n)).mean()
    return _terms(pairs, _sft(pairs), contrast)


def ipo(pairs: PairLogprobs) -> LossTerms:
    """(margin - target)^2 with best-of-n's own target in the place of 1 / (2 beta)."""
    contrast = _squared_error(pairs).mean()
    return _terms(pairs, contrast, contrast)


def dpo(pairs: PairLogprobs, beta: float = 0.1) -> LossTerms:
    """-log sigmoid(beta margin)."""
    contrast = -logsigmoid(beta * pairs.margin).mean()
    return _terms(pairs, contrast, contrast)


def make_loss(name: str, *, alpha: float | None = None, dpo_beta: float = 0.1) -> Loss:
    """The loss called `name`: bonbon, paper, sft, ipo or dpo. `alpha` None is the default of each."""
    losses: dict[str, Loss] = {
        "bonbon": partial(bonbon, alpha=BONBON_ALPHA if alpha is None else alpha),
        "paper": partial(paper, alpha=PAPER_ALPHA if alpha is None else alpha),
        "sft": sft,
        "ipo": ipo,
        "dpo": partial(dpo, beta=dpo_beta),
    }
    return losses[name]


def _sft(pairs: PairLogprobs) -> Tensor:
    return -pairs.chosen.mean()


def _squared_error(pairs: PairLogprobs) -> Tensor:
    return (pairs.margin - targets(pairs.n)).square()


def _terms(pairs: PairLogprobs, loss: Tensor, contrast: Tensor) -> LossTerms:
    return LossTerms(
        loss,
        sft=_sft(pairs).detach(),
        contrast=contrast.detach(),
        margin=pairs.margin.detach().mean(),
        target=targets(pairs.n).mean(),
        chosen_logprob=pairs.chosen.detach().mean(),
        rejected_logprob=pairs.rejected.detach().mean(),
    )
