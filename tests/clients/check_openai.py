"""openai-python: run as `python check_openai.py BASE_URL API_KEY`. Raises when something is not as it should be."""

import sys

import openai

MESSAGES = [{"role": "user", "content": "Where is my order?"}]


def main(url: str, key: str) -> None:
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    whole = client.chat.completions.create(
        model="bonbon", messages=MESSAGES, n=2, extra_body={"best_of": 4, "bonbon": {"candidates": True}}
    )
    extension = whole.model_extra["bonbon"]
    assert len(whole.choices) == 2, whole
    assert len(extension["candidates"]) == extension["n"] == 4, extension

    for model in ("base", "bonbon"):
        one = client.chat.completions.create(model=model, messages=MESSAGES, seed=3)
        chunks = list(
            client.chat.completions.create(
                model=model, messages=MESSAGES, seed=3, stream=True, stream_options={"include_usage": True}
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == one.choices[0].message.content, (text, one)
        assert chunks[-1].usage == one.usage, chunks[-1]

    completion = client.completions.create(model="bonbon", prompt="Dear", best_of=3, logprobs=2, echo=False)
    assert completion.model_extra["bonbon"]["n"] == 3, completion
    assert completion.choices[0].logprobs.tokens, completion

    assert "bonbon" in [model.id for model in client.models.list()]
    raw = client.chat.completions.with_raw_response.create(
        model="bonbon", messages=MESSAGES, extra_headers={"x-request-id": "mine"}
    )
    assert raw.headers["x-request-id"] == "mine", raw.headers
    refused = refusal(lambda: client.chat.completions.create(messages=MESSAGES, model="bonbon", frequency_penalty=3))
    assert (type(refused), refused.param) == (openai.BadRequestError, "frequency_penalty"), refused
    refused = refusal(lambda: client.chat.completions.create(messages=MESSAGES, model="nobody"))
    assert (type(refused), refused.code) == (openai.NotFoundError, "model_not_found"), refused
    print(f"openai {openai.__version__}: passed")


def refusal(call):
    """The error that a call raises."""
    try:
        call()
    except openai.APIStatusError as error:
        return error
    raise AssertionError("nothing was refused")


if __name__ == "__main__":
    main(*sys.argv[1:])
