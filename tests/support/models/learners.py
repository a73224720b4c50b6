"""Creates learners of tiny models without a run."""

from pathlib import Path

import torch

from bonbon.engines.embedded.policy import load_model
from bonbon.engines.engine import VersionFiles
from bonbon.progress import Bars
from bonbon.settings import TrainSettings
from trainer.training.accelerator import make_accelerator
from trainer.training.learning.learner import Learner
from trainer.training.learning.loss import make_loss
from trainer.training.learning.policy import load_policy


def learner_of(base: Path, settings: TrainSettings, *, start: VersionFiles | None = None, n: int = 4) -> Learner:
    """Returns a 32-bit learner on the CPU with the settings' loss for best-of-n."""
    settings = settings.model_copy(update={"precision": "no"})
    own = None
    if settings.method == "full":
        own = {name: weight.clone() for name, weight in load_model(base, CPU, torch.float32).state_dict().items()}
    return Learner(
        settings,
        load_policy(base, start, settings),
        make_accelerator(settings),
        base=base,
        base_weights=own,
        loss=make_loss(settings.loss, n=n, sft_weight=settings.sft_weight, alpha=settings.alpha),
        progress=Bars(show=False),
    )


CPU = torch.device("cpu")


@torch.no_grad()
def nudge(learner: Learner, size: float = 0.05, *, seed: int = 3) -> None:
    """Adds normal noise of this standard deviation to every trained weight."""
    torch.manual_seed(seed)
    for parameter in learner.policy.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn_like(parameter))
