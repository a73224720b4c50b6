"""A prompt and its completion as a reward model reads them."""

from collections.abc import Sequence
from typing import Any

import structlog

from bonbon.errors import RewardError, UserError
from bonbon.prompt import Message, Prompt
from bonbon.rewards.local.sequence_model import Text

log = structlog.get_logger(__name__)


class Conversation:
    """Writes messages and completion with the reward model's own chat template.

    Where the template refuses them, it gets them as `alternating` writes them. A text prompt is followed by the
    completion as it is. A tokenizer without chat template reads messages and completion as a pair of segments.

    Args:
        tokenizer: of the reward model.
        target: what the user calls the model.

    Raises:
        UserError: the chat template cannot render a question and its answer.
    """

    def __init__(self, tokenizer: Any, target: str) -> None:
        self._tokenizer = tokenizer
        if tokenizer.chat_template:
            self._check(target)

    def text(self, prompt: Prompt, completion: str) -> Text:
        """Raises RewardError when the chat template cannot render the messages."""
        if prompt.messages is None:
            return Text((prompt.text or "") + completion, completion)
        if not self._tokenizer.chat_template:
            return Text("\n".join(message["content"] for message in prompt.messages), completion, pair=completion)
        messages = [*prompt.messages, _answer(completion)]
        try:
            rendered = self._render(messages)
        except RewardError:
            rendered = self._render(alternating(messages))
        return Text(rendered, completion, special_tokens=False)

    def _render(self, messages: list[Message]) -> str:
        try:
            rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:
            raise RewardError(
                f"the reward model's chat template cannot render these messages ({type(error).__name__}: {error})"
            ) from error
        return rendered

    def _check(self, target: str) -> None:
        talk: list[Message] = [{"role": "user", "content": "Can you help?"}, _answer("Yes.")]
        try:
            self._render(talk)
        except RewardError as error:
            raise UserError(f"{error}; correct the chat_template of {target}", param="reward") from error
        try:
            self._render([{"role": "system", "content": "Be brief."}, *talk])
        except RewardError as error:
            log.warning(
                "the reward model's chat template refuses system messages: they are put before the next user message",
                model=target,
                error=str(error),
            )


def alternating(messages: Sequence[Message]) -> list[Message]:
    """The conversation as a template of two roles in turn knows it.

    What the system says is the user's, and messages of one role in a row are one message.
    """
    turns: list[Message] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1] = {"role": role, "content": f"{turns[-1]['content']}\n\n{message['content']}"}
        else:
            turns.append({"role": role, "content": message["content"]})
    return turns


def _answer(completion: str) -> Message:
    return {"role": "assistant", "content": completion}
