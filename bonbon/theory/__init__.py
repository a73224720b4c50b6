"""Closed forms and estimators of best-of-n.

U is a candidate's win probability against a fresh draw of the reference policy. Without ties it is uniform on (0, 1).
"BoNBoN" is Gui, Garbacea and Veitch, arXiv 2406.00832; "Beirami" is Beirami et al., arXiv 2401.01879. Logarithms are
natural, and KL divergences are in nats.
"""

from bonbon.theory.anytime import BettingTest, ConfidenceSequence
from bonbon.theory.closed_forms import best_of_n_kl, best_of_n_kl_of_answer, best_of_n_win_rate
from bonbon.theory.estimates import best_of_k_means, best_of_k_rewards, best_of_k_weights, best_of_k_win_rates
from bonbon.theory.frontier import frontier_gap, frontier_kl, frontier_win_rate, tilted_kl, tilted_win_rate
from bonbon.theory.intervals import Estimate, Interval, clustered_mean, clustered_ratio, student_t, wilson
from bonbon.theory.kl import k1, k3, rao_blackwell
from bonbon.theory.objective import best_gain, objective, objective_gain, tilt, tilt_for_kl
from bonbon.theory.ranks import mid_ranks, win_fraction
from bonbon.theory.rolling import RollingSequence
from bonbon.theory.targets import (
    beta,
    harmonic,
    pair_target,
    pair_target_variance,
    quietest_partner,
    rank_pair_target,
    rank_pair_variance,
    rank_targets,
    tied_rank_targets,
)
from bonbon.theory.ties import best_level_masses, tie_loss, tied_kl, tied_win_rate

__all__ = [
    "BettingTest",
    "ConfidenceSequence",
    "Estimate",
    "Interval",
    "RollingSequence",
    "best_gain",
    "best_level_masses",
    "best_of_k_means",
    "best_of_k_rewards",
    "best_of_k_weights",
    "best_of_k_win_rates",
    "best_of_n_kl",
    "best_of_n_kl_of_answer",
    "best_of_n_win_rate",
    "beta",
    "clustered_mean",
    "clustered_ratio",
    "frontier_gap",
    "frontier_kl",
    "frontier_win_rate",
    "harmonic",
    "k1",
    "k3",
    "mid_ranks",
    "objective",
    "objective_gain",
    "pair_target",
    "pair_target_variance",
    "quietest_partner",
    "rank_pair_target",
    "rank_pair_variance",
    "rank_targets",
    "rao_blackwell",
    "student_t",
    "tie_loss",
    "tied_kl",
    "tied_rank_targets",
    "tied_win_rate",
    "tilt",
    "tilt_for_kl",
    "tilted_kl",
    "tilted_win_rate",
    "wilson",
    "win_fraction",
]
