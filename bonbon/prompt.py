"""A prompt in whichever of the three forms it came: chat messages, text, or token ids."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NotRequired, TypedDict

from bonbon.tools import ToolCall, canonical, written


class Message(TypedDict):
    """One turn of a chat: `role` is system, user, assistant or tool, and `name` says who speaks, if anything does.

    An assistant's `tool_calls` are in OpenAI's form; `content` is then empty if there was none. A tool's turn says by
    `tool_call_id` which call it answers.
    """

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Exactly one of the first three fields is set.

    `messages` go through the policy's chat template; `text` is tokenised as it is; `token_ids` are used as they are.
    `tools` and `tool_choice` go with messages: canonical JSON text of what OpenAI's fields of these names hold. So does
    `template`: canonical JSON text of the options that the chat template is rendered with. `add_generation_prompt`
    (true by default), `continue_final_message` (false) and `reasoning_effort` are among them, and so are vLLM's
    `chat_template_kwargs`, each under its own name. What it does not name has its default.
    """

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    tools: str | None = None
    tool_choice: str | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        if sum(form is not None for form in (self.messages, self.text, self.token_ids)) != 1:
            raise ValueError("a prompt is messages, text or token ids: exactly one of them")
        if self.messages is None and (self.tools is not None or self.tool_choice is not None):
            raise ValueError("tools go with messages")
        if self.messages is None and self.template is not None:
            raise ValueError("options of the chat template go with messages")

    @classmethod
    def chat(cls, *messages: Message) -> "Prompt":
        return cls(messages=messages)

    @classmethod
    def user(cls, text: str) -> "Prompt":
        """One user turn."""
        return cls(messages=({"role": "user", "content": text},))

    @property
    def digest(self) -> str:
        """SHA-256 of the prompt's content."""
        content: tuple[object, ...] = (self.messages, self.text, self.token_ids)
        if self.tools is not None or self.tool_choice is not None:
            content += (self.tools, self.tool_choice)
        if self.template is not None:
            content += ("template", self.template)
        return sha256(repr(content).encode()).hexdigest()

    @property
    def root_digest(self) -> str:
        """The digest of the conversation's beginning, up to and including its first user turn.

        Every later turn of a conversation repeats its beginning, so all of its turns share this digest. A prompt that
        is no conversation, or that has no user turn, is its own beginning.
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
        """The template's options without those that are about the conversation's end."""
        ends = ("add_generation_prompt", "continue_final_message")
        options = {name: value for name, value in self.template_options.items() if name not in ends}
        return canonical(options) if options else None

    @property
    def template_options(self) -> dict[str, Any]:
        """What `template` holds."""
        options: dict[str, Any] = json.loads(self.template or "{}")
        return options

    @property
    def continues_message(self) -> bool:
        """Whether completions continue the final message."""
        return bool(self.template_options.get("continue_final_message"))

    @property
    def is_continued(self) -> bool:
        """Whether completions go on from the prompt's last character, and are no message of their own."""
        return self.messages is None or self.continues_message

    @property
    def continued(self) -> str:
        """The part of the message they belong to that completions continue; empty when they begin one of their own."""
        return self.messages[-1]["content"] if self.messages and self.continues_message else ""

    @property
    def has_tools(self) -> bool:
        """Whether reading it takes an engine that knows tools."""
        return self.tools is not None or any(
            "tool_calls" in message or message["role"] == "tool" for message in self.messages or ()
        )

    @property
    def constrains(self) -> bool:
        """Whether its tools force the sampler: some call is required, or a function is strict."""
        if self.tools is None:
            return False
        strict = any(tool.get("function", {}).get("strict") for tool in json.loads(self.tools))
        return strict or json.loads(self.tool_choice or "null") not in (None, "auto", "none")

    @property
    def plain(self) -> "Prompt":
        """The same for readers who know roles and text alone.

        Calls are written out; tools, names and the template's options are left out, and so is a final message that
        completions continue: for such a reader they begin with `continued`.
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
