"""Structured outputs and tools with openai, instructor and pydantic-ai: python check_structured.py BASE_URL API_KEY.

Raises when something is not as it should be. The service's model may have random weights: whatever it draws must fit.
"""

import asyncio
import sys
from enum import Enum
from importlib.metadata import version
from typing import Literal

import instructor
import openai
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

MESSAGES = [{"role": "user", "content": "Where is my order?"}]
MOST = 500
SEVERAL = 850


class Kind(Enum):
    """What a message is about."""

    REFUND = "refund"
    DELIVERY = "delivery"


class Order(BaseModel):
    """What a customer wants."""

    kind: Kind
    urgent: bool
    size: Literal["small", "large"]


def main(url: str, key: str) -> None:
    with_openai(openai.OpenAI(base_url=url, api_key=key, max_retries=0))
    with_instructor(openai.OpenAI(base_url=url, api_key=key, max_retries=0))
    asyncio.run(with_pydantic_ai(OpenAIProvider(base_url=url, api_key=key)))
    packages = ("openai", "instructor", "pydantic-ai-slim")
    print(", ".join(f"{package} {version(package)}" for package in packages), "passed")


def with_openai(client: openai.OpenAI) -> None:
    for model in ("base", "bonbon"):
        parsed = client.chat.completions.parse(
            model=model, messages=MESSAGES, response_format=Order, max_tokens=MOST, extra_body={"best_of": 2}
        )
        assert isinstance(parsed.choices[0].message.parsed, Order), parsed
        tools = [openai.pydantic_function_tool(Order)]
        called = client.chat.completions.parse(
            model=model, messages=MESSAGES, tools=tools, tool_choice="required", max_tokens=SEVERAL
        )
        assert called.choices[0].finish_reason == "tool_calls", called
        for call in called.choices[0].message.tool_calls:
            assert isinstance(call.function.parsed_arguments, Order), call
    with client.chat.completions.stream(
        model="base", messages=MESSAGES, response_format=Order, max_tokens=MOST
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Order), final
    with client.chat.completions.stream(
        model="base", messages=MESSAGES, tools=tools, tool_choice="required", max_tokens=SEVERAL
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.tool_calls[0].function.parsed_arguments, Order), final


def with_instructor(client: openai.OpenAI) -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        patched = instructor.from_openai(client, mode=mode)
        order = patched.chat.completions.create(
            model="base", messages=MESSAGES, response_model=Order, max_tokens=MOST, max_retries=0
        )
        assert isinstance(order, Order), order


async def with_pydantic_ai(provider: OpenAIProvider) -> None:
    model = OpenAIChatModel("base", provider=provider)
    for output, most in ((NativeOutput(Order), MOST), (ToolOutput(Order), SEVERAL)):
        agent = Agent(model, output_type=output, retries=0, model_settings={"max_tokens": most})
        result = await agent.run("Where is my order?")
        assert isinstance(result.output, Order), result


if __name__ == "__main__":
    main(*sys.argv[1:])
