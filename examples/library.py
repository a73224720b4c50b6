"""Best-of-n as a library, on the tiny models that ship with bonbon: `python examples/library.py`."""

import asyncio

from bonbon import BestOfN, Prompt
from bonbon.demo.tiny_models import tiny_models
from bonbon.engines.embedded.embedded_engine import EmbeddedEngine
from bonbon.rewards import build_reward
from bonbon.settings import RewardSpec


async def main() -> None:
    models = tiny_models()  # or the directories of your own policy and reward model
    engine = EmbeddedEngine("base", models.policy)
    reward = build_reward(RewardSpec(kind="classifier", target=str(models.reward)))
    async with BestOfN(engine, reward) as best_of_n:
        answer = await best_of_n(Prompt.user("My lamp arrived broken. Can you help?"), n=8)
        for candidate in sorted(answer.group.candidates, key=lambda candidate: -(candidate.reward or 0)):
            print(f"{candidate.reward:6.2f}  {candidate.text}")


asyncio.run(main())
