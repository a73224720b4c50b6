"""The Agents SDK, whose API is that of responses: run as `python check_agents.py BASE_URL API_KEY`."""

import asyncio
import sys
from importlib.metadata import version

import openai
from agents import Agent, ModelSettings, OpenAIProvider, RunConfig, Runner, WebSearchTool, function_tool
from pydantic import BaseModel


class Weather(BaseModel):
    city: str
    degrees: int


@function_tool
def get_order(id: int) -> str:
    """Where an order is."""
    return f"order {id} is shipped"


async def main(url: str, key: str) -> None:
    client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
    config = RunConfig(model_provider=OpenAIProvider(openai_client=client), tracing_disabled=True)

    for model in ("base", "bonbon"):
        agent = Agent("plain", instructions="Be kind.", model=model)
        first = await Runner.run(agent, "Hello", run_config=config)
        assert first.final_output, first
        turns = [*first.to_input_list(), {"role": "user", "content": "Go on"}]
        assert (await Runner.run(agent, turns, run_config=config)).final_output

        caller = Agent("caller", instructions="Be kind.", model=model, tools=[get_order])
        called = await Runner.run(caller, "Where is order 7?", run_config=config)
        assert [item.type for item in called.new_items][-3:] == [
            "tool_call_item",
            "tool_call_output_item",
            "message_output_item",
        ], called
        assert called.new_items[-2].output == "order 7 is shipped", called
        assert called.final_output, called

        streamed = Runner.run_streamed(caller, "Where is order 7?", run_config=config)
        kinds = [event.data.type async for event in streamed.stream_events() if event.type == "raw_response_event"]
        assert kinds.count("response.completed") == 2, kinds
        assert "response.function_call_arguments.delta" in kinds, kinds
        assert "response.output_text.delta" in kinds, kinds
        assert streamed.final_output, streamed

        shaped = Agent("shaped", model=model, output_type=Weather)
        assert (await Runner.run(shaped, "Paris?", run_config=config)).final_output == Weather(city="Paris", degrees=21)

    settings = ModelSettings(
        temperature=0.5, top_p=1.0, max_tokens=500, top_logprobs=1, parallel_tool_calls=False, truncation="disabled",
        store=False, include_usage=True, metadata={"page": "help"}, extra_body={"best_of": 3},
    )  # fmt: skip
    careful = Agent("careful", model="bonbon", model_settings=settings)
    answer = await Runner.run(careful, "Hello", run_config=config)
    assert answer.context_wrapper.usage.output_tokens > 0, answer

    searching = Agent("searching", model="bonbon", tools=[WebSearchTool()])
    refused = None
    try:
        await Runner.run(searching, "Hello", run_config=config)
    except openai.BadRequestError as error:
        refused = error.param
    assert refused == "tools[0].type", refused
    print(f"openai-agents {version('openai-agents')} on openai {openai.__version__}: passed")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
