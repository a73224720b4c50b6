"""A prompt in whichever of the three forms it came: chat messages, text, or token ids."""

from dataclasses import dataclass
from hashlib import sha256
from typing import TypedDict


class Message(TypedDict):
    """One turn of a chat: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Exactly one of the three fields is set.

    `messages` go through the policy's chat template; `text` is tokenised as it is; `token_ids` are used as they are.
    """

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if sum(form is not None for form in (self.messages, self.text, self.token_ids)) != 1:
            raise ValueError("a prompt is messages, text or token ids: exactly one of them")

    @classmethod
    def chat(cls, *messages: Message) -> "Prompt":
        return cls(messages=messages)

    @classmethod
    def user(cls, text: str) -> "Prompt":
        """One user turn."""
        return cls(messages=({"role": "user", "content": text},))

    @property
    def digest(self) -> str:
        """SHA-256 of the prompt's content: the same prompt always falls on the same side of the held-out split."""
        return sha256(repr((self.messages, self.text, self.token_ids)).encode()).hexdigest()
