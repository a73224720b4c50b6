"""Whether a reward scores at all, before anybody's candidates depend on it."""

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
    """Have a started reward score a dummy conversation: a short answer, a long one, and both at once.

    A reward model has read a text of its full length, alone and in a batch, when it was started. What this adds are the
    faults that only scoring shows: an address where nobody answers, a function of the wrong shape, a server that
    refuses. That a reward cannot score conversations with a system message is a warning, for there may be none.

    Args:
        deadline: seconds that each of the scores may take.

    Raises:
        RewardError: it could not score; the message names the reward and says which texts they were.
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
            "the reward cannot score conversations with a system message: their answers will be degraded",
            reward=reward.name,
            error=str(error),
        )
