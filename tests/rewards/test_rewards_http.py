import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from bonbon.errors import RewardError, UserError
from bonbon.http.circuit_breaker import BreakerState
from bonbon.prompt import Prompt
from bonbon.rewards import build_reward
from bonbon.rewards.remote.http_reward import HttpReward
from bonbon.settings import RewardSpec
from tests.support.servers.scripted_server import Slow, lengths, serving

PROMPT = Prompt.user("Where is my order?")
DOWN = PlainTextResponse("down for maintenance", 503)


@asynccontextmanager
async def started(url: str, **options: Any) -> AsyncIterator[HttpReward]:
    reward = build_reward(RewardSpec(kind="http", target=url, **options))
    assert isinstance(reward, HttpReward)
    await reward.start()
    try:
        yield reward
    finally:
        await reward.stop()


def state(reward: HttpReward) -> BreakerState:
    return reward.client.breaker.state


async def test_contract() -> None:
    with serving(lengths) as server:
        async with started(server.url, api_key="s3cret") as reward:
            assert reward.version == "1"
            assert await reward.score(PROMPT, ["a", "bbb"]) == [1, 3]
            assert reward.version == "v7"
            await reward.score(Prompt(text="Once"), ["x"])
            await reward.score(Prompt(token_ids=(1, 2)), ["x"])
        assert server.requests[0] == {
            "prompt": {"messages": [{"role": "user", "content": "Where is my order?"}]},
            "completions": ["a", "bbb"],
        }
        assert server.requests[1]["prompt"] == {"text": "Once"}
        assert server.requests[2]["prompt"] == {"token_ids": [1, 2]}
        assert server.headers[0]["authorization"] == "Bearer s3cret"
        assert server.headers[0]["content-type"] == "application/json"
        assert server.paths[0] == "/score"


async def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_TOKEN", "from-env")
    with serving(lengths) as server:
        async with started(server.url, api_key_env="SCORER_TOKEN") as reward:
            await reward.score(PROMPT, ["a"])
        assert server.headers[0]["authorization"] == "Bearer from-env"
        monkeypatch.delenv("SCORER_TOKEN")
        with pytest.raises(UserError, match="SCORER_TOKEN"):
            async with started(server.url, api_key_env="SCORER_TOKEN"):
                pass


@pytest.mark.parametrize(
    "answer",
    [
        DOWN,
        PlainTextResponse("no", 404),
        PlainTextResponse("did not answer with JSON"),
        PlainTextResponse("x" * 10_000),
        None,
    ],
    ids=["down", "refused", "did not answer with JSON", "too long", "away"],
)
async def test_a_token_in_the_query_of_its_url_is_in_no_message(answer: PlainTextResponse | None) -> None:
    with serving(*[answer or DOWN] * 3) as server:
        url = "http://127.0.0.1:1/score" if answer is None else server.url
        async with started(f"{url}?token=s3cret", max_response_bytes=5000, attempts=2) as reward:
            with pytest.raises(RewardError, match="/score") as failed:
                await reward.score(PROMPT, ["a"])
    assert "s3cret" not in str(failed.value)


async def test_tries_again_after_5xx_and_429() -> None:
    busy = JSONResponse({}, 429, headers={"retry-after": "0"})
    with serving(DOWN, busy, lengths) as server:
        async with started(server.url) as reward:
            assert await reward.score(PROMPT, ["abc"]) == [3]
            assert state(reward) is BreakerState.CLOSED
        assert len(server.requests) == 3


async def test_gives_up_after_its_attempts() -> None:
    with serving(DOWN) as server:
        async with started(server.url, attempts=2) as reward:
            with pytest.raises(RewardError, match="answered 503: 'down for maintenance'"):
                await reward.score(PROMPT, ["a"])
        assert len(server.requests) == 2


async def test_does_not_wait_longer_than_an_attempt_may_take() -> None:
    with serving(JSONResponse({}, 429, headers={"retry-after": "3600"})) as server:
        async with started(server.url) as reward:
            with pytest.raises(RewardError, match="429"):
                await reward.score(PROMPT, ["a"])
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Response('{"scores": [1.0, NaN]}', media_type="application/json"), "not finite"),
        (Response('{"scores": [1.0, 1e999]}', media_type="application/json"), "not finite"),
        (JSONResponse({"scores": [1.0]}), "1 scores for 2 completions"),
        (JSONResponse({"scores": [1.0, None]}), r"scores\.1"),
        (JSONResponse({"score": 1}), "invalid answer: scores"),
        (JSONResponse([1, 2]), "invalid answer: Input"),
        (PlainTextResponse("fine, thanks"), "did not answer with JSON: 'fine, thanks'"),
        (Response(b"\xff\xfe\xff"), "did not answer with JSON"),
        (RedirectResponse("http://127.0.0.1:1/elsewhere"), "answered 307"),
        (JSONResponse({"detail": "no such field"}, 422), "answered 422: .*no such field"),
        (JSONResponse({"scores": [0.0] * 100_000}), "more than 50000 bytes"),
    ],
)
async def test_refuses_what_breaks_the_contract_at_once(answer: Response, message: str) -> None:
    with serving(answer) as server:
        async with started(server.url, max_response_bytes=50_000) as reward:
            with pytest.raises(RewardError, match=message):
                await reward.score(PROMPT, ["a", "b"])
        assert len(server.requests) == 1


async def test_a_late_attempt_is_not_repeated() -> None:
    with serving(Slow(1.0, lengths)) as server:
        async with started(server.url, timeout=0.1) as reward:
            with pytest.raises(RewardError, match=r"within 0\.1 s"):
                await reward.score(PROMPT, ["a"])
        assert len(server.requests) == 1


async def test_the_breaker_leaves_a_dead_service_alone_and_finds_it_again() -> None:
    with serving(DOWN, DOWN, lengths) as server:
        async with started(server.url, attempts=1, breaker_failures=2, breaker_cool_down=0.2) as reward:
            for _ in range(2):
                with pytest.raises(RewardError, match="503"):
                    await reward.score(PROMPT, ["a"])
            assert state(reward) is BreakerState.OPEN
            with pytest.raises(RewardError, match="failed too often"):
                await reward.score(PROMPT, ["a"])
            assert len(server.requests) == 2
            await asyncio.sleep(0.25)
            assert await reward.score(PROMPT, ["a"]) == [1]
            assert state(reward) is BreakerState.CLOSED


async def test_a_client_error_does_not_open_the_breaker() -> None:
    with serving(JSONResponse({}, 400)) as server:
        async with started(server.url, breaker_failures=1) as reward:
            for _ in range(3):
                with pytest.raises(RewardError, match="400"):
                    await reward.score(PROMPT, ["a"])
            assert state(reward) is BreakerState.CLOSED
        assert len(server.requests) == 3


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/score"
        async with started(url, attempts=2, breaker_failures=1) as reward:
            with pytest.raises(RewardError, match="ClientConnectorError"):
                await reward.score(PROMPT, ["a"])
            assert state(reward) is BreakerState.OPEN


async def test_must_be_started() -> None:
    reward = build_reward(RewardSpec.model_validate("http://127.0.0.1:9/"))
    with pytest.raises(RewardError, match="not started"):
        await reward.score(PROMPT, ["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "ftp://scores.example/"}, "ftp://scores.example/"),
        ({"target": "http://"}, "host"),
        ({"target": "http://[::1"}, "target"),
        ({"target": "http://me:pass@scores.example/"}, "api_key_env"),
        ({"target": "http://scores.example/", "timeout": 0}, "timeout = 0"),
        (
            {"target": "http://scores.example/", "timeuot": 3},
            "timeuot: there is no such option; the options are target, timeout",
        ),
        ({}, "target is required"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_reward(RewardSpec(kind="http", **options))


def test_a_secret_is_never_shown() -> None:
    for options in ({"api_key": ["hunter2"]}, {"api_kye": "hunter2"}):
        with pytest.raises(UserError) as refused:
            build_reward(RewardSpec.model_validate({"kind": "http", "target": "http://scores.example/"} | options))
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "2852039166", "[::ffff:169.254.169.254]", "[fe80::1]", "[fd00:ec2::254]"]
)
async def test_metadata_addresses_are_refused(host: str) -> None:
    reward = build_reward(RewardSpec(kind="http", target=f"http://{host}/latest"))
    with pytest.raises(UserError, match="link-local"):
        await reward.start()


async def test_a_name_that_means_a_metadata_address_later_is_refused_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against DNS rebinding, each connection checks the address that it connects to."""
    meant = iter(["127.0.0.1", *["169.254.169.254"] * 9])

    async def getaddrinfo(host: str, port: int | None, **_: Any) -> list[Any]:
        address = next(meant) if host == "scores.example" else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with started("http://scores.example:9/", attempts=1) as reward:
        with pytest.raises(RewardError, match=r"link-local address 169\.254\.169\.254"):
            await reward.score(PROMPT, ["a"])


async def test_metadata_addresses_can_be_allowed() -> None:
    async with started("http://169.254.169.254/", allow_link_local=True) as reward:
        assert reward.name == "http"
