"""Renders a prompt and its completion for a reward model."""

from collections.abc import Sequence
from typing import Any

import structlog

from bonbon.errors import RewardError, UserError
from bonbon.prompt import Message, Prompt
from bonbon.rewards.local.sequence_model import Text

log = structlog.get_logger(__name__)


class Conversation:
    """Renders messages and a completion with the reward model's own chat template.

    Where the template refuses the messages, they are rendered in the form of `alternating`. A text prompt is followed
    directly by the completion. A tokenizer without a chat template reads messages and completion as a pair of segments.

    Args:
        tokenizer: The tokenizer of the reward model.
        target: The user's name for the model.

    Raises:
        UserError: The chat template cannot render a question and its answer.
    """

    def __init__(self, tokenizer: Any, target: str) -> None:
        self._tokenizer = tokenizer
        if tokenizer.chat_template:
            self._check(target)

    def text(self, prompt: Prompt, completion: str) -> Text:
        """Renders a conversation. Raises RewardError when the chat template cannot render the messages."""
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
                "the reward model's chat template refuses system messages; prepending them to the next user message",
                model=target,
                error=str(error),
            )


def alternating(messages: Sequence[Message]) -> list[Message]:
    """Returns the conversation for templates that accept only user and assistant messages in turn.

    System messages become user messages, and consecutive messages of one role become one message.
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
