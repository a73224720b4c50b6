"""A prompt in any of its three forms: chat messages, text, or token ids."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NotRequired, TypedDict

from bonbon.tools import ToolCall, canonical, written


class Message(TypedDict):
    """One turn of a chat: `role` is system, user, assistant or tool, and `name` optionally identifies the speaker.

    An assistant's `tool_calls` are in OpenAI's format; `content` is empty if the model wrote none. In a tool's turn,
    `tool_call_id` is the id of the call that it answers.
    """

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt. Exactly one of the first three fields is set.

    `messages` are rendered with the policy's chat template, `text` is tokenised as it is, and `token_ids` are used as
    they are. `tools` and `tool_choice` belong to messages: they are the canonical JSON text of OpenAI's fields of these
    names. So does `template`: it is the canonical JSON text of the options for the chat template, among them
    `add_generation_prompt` (default true), `continue_final_message` (default false), `reasoning_effort`, and each of
    vLLM's `chat_template_kwargs` under its own name. Missing options have their defaults.
    """

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    tools: str | None = None
    tool_choice: str | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        if sum(form is not None for form in (self.messages, self.text, self.token_ids)) != 1:
            raise ValueError("a prompt needs exactly one of messages, text and token_ids")
        if self.messages is None and (self.tools is not None or self.tool_choice is not None):
            raise ValueError("tools and tool_choice need a prompt of messages")
        if self.messages is None and self.template is not None:
            raise ValueError("options of the chat template need a prompt of messages")

    @classmethod
    def chat(cls, *messages: Message) -> "Prompt":
        return cls(messages=messages)

    @classmethod
    def user(cls, text: str) -> "Prompt":
        """Returns a prompt of one user turn."""
        return cls(messages=({"role": "user", "content": text},))

    @property
    def digest(self) -> str:
        """Returns the SHA-256 of the prompt's content."""
        content: tuple[object, ...] = (self.messages, self.text, self.token_ids)
        if self.tools is not None or self.tool_choice is not None:
            content += (self.tools, self.tool_choice)
        if self.template is not None:
            content += ("template", self.template)
        return sha256(repr(content).encode()).hexdigest()

    @property
    def root_digest(self) -> str:
        """Returns the digest of the conversation's beginning, up to and including its first user turn.

        Every later turn of a conversation repeats its beginning, so all of its turns share this digest. A prompt that
        is not a conversation, or that has no user turn, counts as its own beginning.
        """
        turns = self.messages or ()
        first = next((place for place, message in enumerate(turns) if message["role"] == "user"), len(turns))
        if first + 1 >= len(turns):
            return self.digest
        return Prompt(
            turns[: first + 1], tools=self.tools, tool_choice=self.tool_choice, template=self._template_of_beginning
        ).digest

    @property
    def _template_of_beginning(self) -> str | None:
        """Returns the template's options, except those that concern the end of the conversation."""
        ends = ("add_generation_prompt", "continue_final_message")
        options = {name: value for name, value in self.template_options.items() if name not in ends}
        return canonical(options) if options else None

    @property
    def template_options(self) -> dict[str, Any]:
        """Returns `template` as a dictionary."""
        options: dict[str, Any] = json.loads(self.template or "{}")
        return options

    @property
    def continues_message(self) -> bool:
        """Returns whether completions continue the final message."""
        return bool(self.template_options.get("continue_final_message"))

    @property
    def is_continued(self) -> bool:
        """Returns whether completions continue the prompt's last character instead of starting a new message."""
        return self.messages is None or self.continues_message

    @property
    def continued(self) -> str:
        """Returns the beginning of the message that completions continue; empty when they start a new message."""
        return self.messages[-1]["content"] if self.messages and self.continues_message else ""

    @property
    def has_tools(self) -> bool:
        """Returns whether the prompt needs an engine that supports tools."""
        return self.tools is not None or any(
            "tool_calls" in message or message["role"] == "tool" for message in self.messages or ()
        )

    @property
    def constrains(self) -> bool:
        """Returns whether the tools constrain the sampler: a call is required, or a function is strict."""
        if self.tools is None:
            return False
        strict = any(tool.get("function", {}).get("strict") for tool in json.loads(self.tools))
        return strict or json.loads(self.tool_choice or "null") not in (None, "auto", "none")

    @property
    def plain(self) -> "Prompt":
        """Returns the prompt reduced to roles and text, for rewards, which know nothing else.

        Calls are written as text. Tools, names and the template's options are left out, and so is a final message that
        completions continue: for such a reader, each completion starts with `continued`.
        """
        named = any("name" in message for message in self.messages or ())
        if not self.has_tools and not named and self.template is None:
            return self
        turns = self.messages or ()
        return Prompt(messages=tuple(map(_plain, turns[:-1] if self.continues_message else turns)))


def _plain(message: Message) -> Message:
    functions = [(call["id"], call["function"]) for call in message.get("tool_calls", [])]
    calls = [ToolCall(id_, function["name"], function["arguments"]) for id_, function in functions]
    return {"role": message["role"], "content": written(message["content"], calls)}
