"""Checks that a reward can score at all before users' requests depend on it."""

import structlog

from bonbon.errors import RewardError
from bonbon.prompt import Message, Prompt
from bonbon.rewards.reward import Reward
from bonbon.rewards.scoring import score_texts

QUESTION: Message = {"role": "user", "content": "My lamp arrived broken. Can you help?"}
SYSTEM: Message = {"role": "system", "content": "You answer for a shop that sells lamps."}
SHORT, LONG = "Yes, a new one is on its way.", "Yes, of course. " * 250
"""Answers of about 10 and 1,000 tokens."""

log = structlog.get_logger(__name__)


async def check_reward(reward: Reward, *, deadline: float = 60.0) -> None:
    """Has a started reward score a test conversation: a short answer, a long one, and both at once.

    A reward model already reads a text of its full length, alone and in a batch, when it starts. This check adds the
    faults that only scoring shows: an address where no server answers, a function that returns the wrong shape, a
    server that refuses the request. A reward that cannot score conversations with a system message causes only a
    warning, because such conversations may never occur.

    Args:
        deadline: The seconds that each score may take.

    Raises:
        RewardError: The reward could not score; the message names the reward and the texts.
    """
    plain, instructed = Prompt.chat(QUESTION), Prompt.chat(SYSTEM, QUESTION)
    for what, texts in (("a short answer", [SHORT]), ("a long answer", [LONG]), ("two answers at once", [SHORT, LONG])):
        try:
            await score_texts(reward, plain, texts, deadline=deadline)
        except RewardError as error:
            raise RewardError(f"reward {reward.name} cannot score {what}: {error}") from error
    try:
        await score_texts(reward, instructed, [SHORT], deadline=deadline)
    except RewardError as error:
        log.warning(
            "the reward cannot score conversations with a system message, so their answers will be degraded",
            reward=reward.name,
            error=str(error),
        )
