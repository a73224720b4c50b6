"""Losses on a batch of best-of-n pairs, as pure functions of summed log-probabilities.

"BoNBoN" is Gui, Garbacea and Veitch, arXiv 2406.00832; "IPO" Azar et al., arXiv 2310.12036; "DPO" Rafailov et al.,
arXiv 2305.18290. Log-probabilities are in nats, summed over a completion's tokens: a mean over tokens is another loss,
to which the closed-form target does not belong.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Alpha = float | Literal["auto"]
BONBON_ALPHA, PAPER_ALPHA = 0.5, 0.005


class PairLogprobs(NamedTuple):
    """One batch, every field of shape [batch].

    `chosen` and `rejected` are under the policy, the next two under the reference policy; `n` is how many candidates
    each group has, `chosen_rank` and `rejected_rank` (1 the lowest, fractions for ties) are among `ranked` candidates:
    the group's own n, or all that were drawn for its prompt. `below` is how many of the group's candidates are strictly
    below the best: those that the rejected one was drawn from.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    n: Tensor
    chosen_rank: Tensor
    rejected_rank: Tensor
    ranked: Tensor
    below: Tensor

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


def targets(pairs: PairLogprobs) -> Tensor:
    """`bonbon.theory.rank_pair_target` of each pair, [batch], float32: (n - 1) (psi(upper) - psi(lower))."""
    digamma = torch.digamma(pairs.chosen_rank.double()) - torch.digamma(pairs.rejected_rank.double())
    return ((pairs.n - 1) * digamma).float()


def target_variances(pairs: PairLogprobs) -> Tensor:
    """`bonbon.theory.rank_pair_variance` of each pair, [batch], float32: (n - 1)^2 (psi'(lower) - psi'(upper))."""
    lower, upper = pairs.rejected_rank.double(), pairs.chosen_rank.double()
    return ((pairs.n - 1) ** 2 * (torch.polygamma(1, lower) - torch.polygamma(1, upper))).float()


def bonbon(pairs: PairLogprobs, alpha: Alpha = "auto") -> LossTerms:
    """alpha SFT + (1 - alpha) IPO / Var: BoNBoN with each contrast in units of its own variance.

    The division makes alpha mean the same at every n and rank: best-of-n itself leaves a contrast of exactly 1.

    Args:
        alpha: `auto` takes `BONBON_ALPHA`, and `divergence` in the place of both terms for pairs whose ranks are among
            more candidates than their group's.
    """
    contrast = _squared_error(pairs) / target_variances(pairs)
    weight = BONBON_ALPHA if alpha == "auto" else alpha
    loss = weight * -pairs.chosen + (1 - weight) * contrast
    if alpha == "auto":
        pooled = pairs.ranked > pairs.n
        away = divergence(pairs)
        loss, contrast = torch.where(pooled, away, loss), torch.where(pooled, away, contrast)
    return _terms(pairs, loss.mean(), contrast.mean())


def divergence(pairs: PairLogprobs) -> Tensor:
    """An estimate of KL(best-of-n || policy) that is 0 where log pi/pi_0 of both is best-of-n's own, [batch].

    With h = log pi/pi_0 and w = pi_n/pi_0, which ranks among many candidates give, KL(pi_n || pi) is the mean over the
    reference of w (log w - h) - w + e^h: the last two terms have equal means and only take noise away (the convex risk
    of Nguyen, Wainwright and Jordan, arXiv 0809.0853). A group's mean over all its candidates is estimated from the
    best and one drawn from those below it.
    """
    share = pairs.below / pairs.n
    best = _away(pairs.chosen - pairs.reference_chosen, pairs.chosen_rank, pairs)
    other = _away(pairs.rejected - pairs.reference_rejected, pairs.rejected_rank, pairs)
    return (1 - share) * best + share * other


def paper(pairs: PairLogprobs, alpha: float = PAPER_ALPHA) -> LossTerms:
    """alpha SFT + (1 - alpha) IPO, as printed (BoNBoN, section 4)."""
    contrast = _squared_error(pairs).mean()
    return _terms(pairs, alpha * _sft(pairs) + (1 - alpha) * contrast, contrast)


def sft(pairs: PairLogprobs) -> LossTerms:
    """-log pi(chosen). The contrast of `bonbon` with a number for alpha is reported, not trained on."""
    contrast = (_squared_error(pairs) / target_variances(pairs)).mean()
    return _terms(pairs, _sft(pairs), contrast)


def ipo(pairs: PairLogprobs) -> LossTerms:
    """(margin - target)^2 with best-of-n's own target in the place of 1 / (2 beta)."""
    contrast = _squared_error(pairs).mean()
    return _terms(pairs, contrast, contrast)


def dpo(pairs: PairLogprobs, beta: float = 0.1) -> LossTerms:
    """-log sigmoid(beta margin)."""
    contrast = -logsigmoid(beta * pairs.margin).mean()
    return _terms(pairs, contrast, contrast)


def make_loss(name: str, *, alpha: Alpha = "auto", dpo_beta: float = 0.1) -> Loss:
    """The loss called `name`: bonbon, paper, sft, ipo or dpo."""
    losses: dict[str, Loss] = {
        "bonbon": partial(bonbon, alpha=alpha),
        "paper": partial(paper, alpha=PAPER_ALPHA if alpha == "auto" else alpha),
        "sft": sft,
        "ipo": ipo,
        "dpo": partial(dpo, beta=dpo_beta),
    }
    return losses[name]


def _away(log_ratio: Tensor, rank: Tensor, pairs: PairLogprobs) -> Tensor:
    """w (log w - h) - w + e^h, with log w the rank's target in `bonbon.theory.rank_targets`, [batch]."""
    n = pairs.n.double()
    target = n.log() + (n - 1) * (torch.digamma(rank.double()) - torch.digamma(pairs.ranked.double()))
    target = target.float()
    weight = target.exp()
    return weight * (target - log_ratio) - weight + log_ratio.exp()


def _sft(pairs: PairLogprobs) -> Tensor:
    return -pairs.chosen.mean()


def _squared_error(pairs: PairLogprobs) -> Tensor:
    return (pairs.margin - targets(pairs)).square()


def _terms(pairs: PairLogprobs, loss: Tensor, contrast: Tensor) -> LossTerms:
    return LossTerms(
        loss,
        sft=_sft(pairs).detach(),
        contrast=contrast.detach(),
        margin=pairs.margin.detach().mean(),
        target=targets(pairs).mean(),
        chosen_logprob=pairs.chosen.detach().mean(),
        rejected_logprob=pairs.rejected.detach().mean(),
    )
