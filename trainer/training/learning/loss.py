"""Losses on groups of scored candidates, as pure functions of summed log-probabilities.

"BoNBoN" is Gui, Garbacea and Veitch, arXiv 2406.00832; "IPO" Azar et al., arXiv 2310.12036; "DPO" Rafailov et al.,
arXiv 2305.18290; "GVPO" Zhang et al., arXiv 2504.19599; "vBoN" Amini et al., arXiv 2407.06057; "BOND" Sessa et al.,
arXiv 2407.14622. Log-probabilities are in nats and summed over a candidate's tokens. A mean over tokens would be
another loss, for which the targets do not hold.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bonbon import theory

LossName = Literal["gvpo", "vbon", "bond", "bonbon", "paper", "sft", "ipo", "dpo"]
OF_ALL_CANDIDATES: tuple[LossName, ...] = ("gvpo", "vbon", "bond")
"""The losses that learn from all candidates of a group. The others learn from two."""
ALPHAS: dict[LossName, float] = {"bonbon": 0.5, "paper": 0.005}
"""Weights of the supervised term in the losses that have one."""


class GroupLogprobs(NamedTuple):
    """The candidates of a batch of groups. Those of one group are adjacent, worst first; every field is [candidates].

    `policy` and `reference` are log-probabilities under the policy and its reference. `wins` estimates the probability
    of winning against one draw of the reference (`trainer.data.groups.win_chances`). `rank` (1 the lowest, fractions
    for ties) is the rank among the `n` candidates of the group, of which a batch may hold only some. `group` numbers
    the groups from 0.
    """

    policy: Tensor
    reference: Tensor
    wins: Tensor
    rank: Tensor
    n: Tensor
    group: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """log pi/pi_0, [candidates]."""
        return self.policy - self.reference

    @property
    def worst(self) -> Tensor:
        """Position of each group's first candidate, [groups]."""
        return torch.cat([self._sizes.new_zeros(1), self._sizes.cumsum(0)[:-1]])

    @property
    def best(self) -> Tensor:
        """Position of each group's last candidate, [groups]."""
        return self._sizes.cumsum(0) - 1

    @property
    def _sizes(self) -> Tensor:
        return torch.bincount(self.group)

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean over each group of a value per candidate, [groups]."""
        return self.sum(values) / self._sizes

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum over each group of a value per candidate, [groups]."""
        return values.new_zeros(len(self._sizes)).index_add(0, self.group, values)

    def centred(self, values: Tensor) -> Tensor:
        """Returns a value per candidate minus its group's mean, [candidates]."""
        return values - self.mean(values)[self.group]

    def softmax(self, values: Tensor) -> Tensor:
        """Returns the softmax over each group of a value per candidate, [candidates]."""
        # Subtracts the group's own maximum. With another group's maximum, all weights of a group could underflow to 0.
        highest = values.new_full((len(self._sizes),), -torch.inf).scatter_reduce(0, self.group, values, "amax")
        weights = (values - highest[self.group]).exp()
        return weights / self.sum(weights)[self.group]

    def covariance(self, left: Tensor, right: Tensor) -> Tensor:
        """Returns the unbiased covariance within each group, [groups]."""
        return self.sum(self.centred(left) * self.centred(right)) / (self._sizes - 1)


class LossTerms(NamedTuple):
    """The loss and its parts, all scalars. Only `loss` carries a gradient; the others are for reports.

    `sft` is the supervised term and `contrast` the contrastive one, before weighting. `margin` is the mean of log
    pi/pi_0 (best) - log pi/pi_0 (worst of those in the batch), and `target` is the loss's target for it.
    """

    loss: Tensor
    sft: Tensor
    contrast: Tensor
    margin: Tensor
    target: Tensor
    chosen_logprob: Tensor
    rejected_logprob: Tensor


Loss = Callable[[GroupLogprobs], LossTerms]


def gvpo(batch: GroupLogprobs, *, tilt: float, sft_weight: float = 0.0) -> LossTerms:
    """Half the squared difference between log pi/pi_0 and `tilt` times the win chance, both minus their group's mean.

    All candidates of a group contribute. The minimum is the reference tilted by exp(tilt U), which is the best policy
    at its KL (`bonbon.theory.objective`), whichever policy drew the candidates (GVPO, theorems 1 and 2). On the
    policy's own fresh draws, the gradient is an unbiased estimate of the gradient of -J.

    Args:
        sft_weight: Weight of a supervised term, the mean of -log pi over candidates weighted by exp(tilt U). It keeps
            the policy on text that is likely under the reference. Its own minimum is nearer to the reference.
    """
    return _regression(batch, tilt * batch.wins, contrast_weight=1.0, sft_weight=sft_weight)


def vbon(batch: GroupLogprobs, *, n: int) -> LossTerms:
    """`gvpo` with best-of-n itself as the target, (n - 1) log U; `gvpo` targets the best policy at best-of-n's KL.

    On the policy's own fresh draws, the gradient is that of KL(policy || best-of-n) (vBoN, section 3). The win chance U
    is smoothed as (n U + 1/2) / (n + 1/2), because a candidate that lost every comparison may still win others. For a
    group drawn from the base, that is the logarithm of the rank.
    """
    return _regression(batch, _log_best_of_n(batch, n), contrast_weight=1.0, sft_weight=0.0)


def bond(batch: GroupLogprobs, *, n: int) -> LossTerms:
    """Half the sum of KL(policy || best-of-n), as in `vbon`, and KL(best-of-n || policy) (BOND, section 4.3)."""
    return _regression(batch, _log_best_of_n(batch, n), contrast_weight=0.5, sft_weight=0.5)


def bonbon(batch: GroupLogprobs, *, alpha: float = ALPHAS["bonbon"]) -> LossTerms:
    """alpha SFT + (1 - alpha) IPO / Var: BoNBoN with each contrast in units of its own variance.

    The division gives alpha the same meaning at every n and rank: best-of-n itself leaves a contrast of exactly 1.
    """
    sft, contrast = _sft(batch), (_squared_error(batch) / pair_variances(batch)).mean()
    return _terms(batch, alpha * sft + (1 - alpha) * contrast, sft=sft, contrast=contrast)


def paper(batch: GroupLogprobs, *, alpha: float = ALPHAS["paper"]) -> LossTerms:
    """alpha SFT + (1 - alpha) IPO, as printed in the paper (BoNBoN, section 4)."""
    sft, contrast = _sft(batch), _squared_error(batch).mean()
    return _terms(batch, alpha * sft + (1 - alpha) * contrast, sft=sft, contrast=contrast)


def sft(batch: GroupLogprobs) -> LossTerms:
    """-log pi(best). The contrast of `bonbon` is reported but not trained on."""
    loss = _sft(batch)
    return _terms(batch, loss, sft=loss, contrast=(_squared_error(batch) / pair_variances(batch)).mean())


def ipo(batch: GroupLogprobs) -> LossTerms:
    """(margin - target)^2, where best-of-n's own target replaces 1 / (2 beta)."""
    contrast = _squared_error(batch).mean()
    return _terms(batch, contrast, sft=_sft(batch), contrast=contrast)


def dpo(batch: GroupLogprobs, *, beta: float = 0.1) -> LossTerms:
    """-log sigmoid(beta margin)."""
    contrast = -logsigmoid(beta * margins(batch)).mean()
    return _terms(batch, contrast, sft=_sft(batch), contrast=contrast)


def make_loss(
    name: LossName,
    *,
    n: int,
    tilt: float | None = None,
    sft_weight: float = 0.0,
    alpha: float | None = None,
    dpo_beta: float = 0.1,
) -> Loss:
    """Returns the loss of this name, for the n of best-of-n.

    `tilt` is the c of `gvpo`; the default is `theory.tilt(n)`.

    Losses outside `OF_ALL_CANDIDATES` expect pairs: two candidates of each group, the best one last.
    """
    weight = ALPHAS.get(name, 0.0) if alpha is None else alpha
    losses: dict[LossName, Loss] = {
        "gvpo": partial(gvpo, tilt=theory.tilt(n) if tilt is None else tilt, sft_weight=sft_weight),
        "vbon": partial(vbon, n=n),
        "bond": partial(bond, n=n),
        "bonbon": partial(bonbon, alpha=weight),
        "paper": partial(paper, alpha=weight),
        "sft": sft,
        "ipo": ipo,
        "dpo": partial(dpo, beta=dpo_beta),
    }
    return losses[name]


def margins(batch: GroupLogprobs) -> Tensor:
    """Returns log pi/pi_0 (best) - log pi/pi_0 (worst of those in the batch), [groups]."""
    return batch.log_ratio[batch.best] - batch.log_ratio[batch.worst]


def pair_targets(batch: GroupLogprobs) -> Tensor:
    """Returns `bonbon.theory.rank_pair_target` of each pair, (n - 1) (psi(upper) - psi(lower)), [groups], float32."""
    digamma = torch.digamma(batch.rank.double())
    return ((batch.n[batch.best] - 1) * (digamma[batch.best] - digamma[batch.worst])).float()


def pair_variances(batch: GroupLogprobs) -> Tensor:
    """Returns `bonbon.theory.rank_pair_variance` of each pair, (n - 1)^2 (psi'(lower) - psi'(upper)), [groups],
    float32.
    """
    trigamma = torch.polygamma(1, batch.rank.double())
    return ((batch.n[batch.best] - 1) ** 2 * (trigamma[batch.worst] - trigamma[batch.best])).float()


def _log_best_of_n(batch: GroupLogprobs, n: int) -> Tensor:
    """Returns log best-of-n/pi_0 up to a constant, [candidates]."""
    return (n - 1) * ((n * batch.wins + 0.5) / (n + 0.5)).log()


def _regression(batch: GroupLogprobs, target: Tensor, *, contrast_weight: float, sft_weight: float) -> LossTerms:
    """Returns the weighted sum of two terms, both minimised by the base tilted by exp(target) on draws of the base.

    The contrast is half the squared difference between log pi/pi_0 and the target, both minus their group's mean. It
    has the same minimum whoever drew. The supervised term is the mean of -log pi over candidates weighted by
    exp(target). On draws of a policy that is tilted already it asks for one that is tilted further.
    """
    residual = batch.log_ratio - target
    contrast = batch.covariance(residual, residual).mean() / 2
    sft = -batch.sum(batch.softmax(target) * batch.policy).mean()
    reached = (target[batch.best] - target[batch.worst]).mean()
    loss = contrast_weight * contrast + sft_weight * sft
    return _terms(batch, loss, sft=sft, contrast=contrast, target=reached)


def _sft(batch: GroupLogprobs) -> Tensor:
    return -batch.policy[batch.best].mean()


def _squared_error(batch: GroupLogprobs) -> Tensor:
    return (margins(batch) - pair_targets(batch)).square()


def _terms(
    batch: GroupLogprobs, loss: Tensor, *, sft: Tensor, contrast: Tensor, target: Tensor | None = None
) -> LossTerms:
    return LossTerms(
        loss,
        sft=sft.detach(),
        contrast=contrast.detach(),
        margin=margins(batch).detach().mean(),
        target=(pair_targets(batch).mean() if target is None else target).detach(),
        chosen_logprob=batch.policy[batch.best].detach().mean(),
        rejected_logprob=batch.policy[batch.worst].detach().mean(),
    )
