"""The routing table: the version behind each model name, and the references to versions in use."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bonbon.errors import UnknownVersion
from service.routing.router import Asked, Loaded, Router, Routes

CREATED = datetime(2026, 1, 2, tzinfo=UTC)
LOADED = {
    "tiny": Loaded("tiny", CREATED),
    "tiny-bonbon-0001": Loaded("tiny-bonbon-0001", CREATED, "tiny"),
    "tiny-bonbon-0002": Loaded("tiny-bonbon-0002", CREATED, "tiny-bonbon-0001"),
}
DISTILLED = Routes("tiny", "tiny-bonbon-0002", LOADED, previous="tiny-bonbon-0001")
NEEDS_3 = replace(
    DISTILLED,
    loaded=LOADED | {"tiny-bonbon-0002": replace(LOADED["tiny-bonbon-0002"], k=3)},
)


def make(routes: Routes | None = None) -> Router:
    router = Router("tiny", alias="bonbon", n=8)
    if routes is not None:
        router.publish(routes)
    return router


@pytest.mark.parametrize(
    ("model", "n", "best_of", "version", "drawn", "asked"),
    [
        ("bonbon", 1, None, "tiny", 8, Asked.ALIAS),
        ("champion", 1, None, "tiny", 8, Asked.ALIAS),
        ("bonbon", 10, None, "tiny", 10, Asked.ALIAS),
        ("bonbon", 1, 1, "tiny", 1, Asked.ALIAS),
        ("bonbon", 2, 4, "tiny", 4, Asked.ALIAS),
        ("base", 1, None, "tiny", 1, Asked.BASE),
        ("base", 1, 16, "tiny", 16, Asked.BASE),
        ("tiny", 3, None, "tiny", 3, Asked.VERSION),
    ],
)
def test_while_the_base_is_champion_the_alias_draws_best_of_n(
    model: str, n: int, best_of: int | None, version: str, drawn: int, asked: Asked
) -> None:
    with make().route(model, n=n, best_of=best_of) as route:
        assert (route.model, route.version, route.best_of, route.asked) == (model, version, drawn, asked)


@pytest.mark.parametrize(
    ("model", "n", "best_of", "version", "drawn"),
    [
        ("bonbon", 1, None, "tiny-bonbon-0002", 1),
        ("champion", 3, None, "tiny-bonbon-0002", 3),
        ("bonbon", 1, 8, "tiny-bonbon-0002", 8),
        ("previous", 1, None, "tiny-bonbon-0001", 1),
        ("tiny-bonbon-0001", 1, None, "tiny-bonbon-0001", 1),
        ("base", 1, None, "tiny", 1),
    ],
)
def test_a_distilled_champion_answers_with_one_draw(
    model: str, n: int, best_of: int | None, version: str, drawn: int
) -> None:
    with make(DISTILLED).route(model, n=n, best_of=best_of) as route:
        assert (route.version, route.best_of) == (version, drawn)


@pytest.mark.parametrize(
    ("model", "n", "best_of", "drawn"),
    [
        ("bonbon", 1, None, 3),
        ("champion", 1, None, 3),
        ("bonbon", 5, None, 5),
        ("bonbon", 1, 1, 1),
        ("previous", 1, None, 1),
        ("tiny-bonbon-0002", 1, None, 1),
    ],
)
def test_a_champion_that_needs_several_draws_answers_with_the_best_of_them(
    model: str, n: int, best_of: int | None, drawn: int
) -> None:
    with make(NEEDS_3).route(model, n=n, best_of=best_of) as route:
        assert route.best_of == drawn


def test_a_champion_that_fell_back_answers_with_best_of_n_whatever_it_needs() -> None:
    router = make(replace(NEEDS_3, fallen_back=True))
    assert (router.k, router.champion_k) == (8, 3)


def test_the_operator_decides_how_many_draws_a_distilled_champion_takes() -> None:
    router = Router("tiny", alias="bonbon", n=8, k=1)
    assert router.k == 8  # of the base: nothing is distilled yet
    router.publish(NEEDS_3)
    assert router.k == 1


@pytest.mark.parametrize(
    ("model", "best_of", "version", "drawn"),
    [
        ("bonbon", None, "tiny", 8),
        ("bonbon", 2, "tiny", 2),
        ("champion", None, "tiny-bonbon-0002", 1),
        ("tiny-bonbon-0002", None, "tiny-bonbon-0002", 1),
    ],
)
def test_for_what_no_version_has_learnt_the_alias_is_best_of_n_of_the_base(
    model: str, best_of: int | None, version: str, drawn: int
) -> None:
    with make(DISTILLED).route(model, best_of=best_of, learned=False) as route:
        assert (route.version, route.best_of) == (version, drawn)


def test_and_of_the_champion_while_the_base_has_no_place() -> None:
    """Full weights have replaced the base's."""
    loaded = {"tiny-bonbon-0002": LOADED["tiny-bonbon-0002"]}
    with make(Routes("tiny", "tiny-bonbon-0002", loaded)).route("bonbon", learned=False) as route:
        assert (route.version, route.best_of) == ("tiny-bonbon-0002", 8)


@pytest.mark.parametrize("model", ["gpt-5", "challenger", "", "tiny-bonbon-0003"])
def test_an_unknown_model_is_refused_with_what_there_is(model: str) -> None:
    with pytest.raises(UnknownVersion) as refused, make(DISTILLED).route(model):
        pass
    assert repr(model) in str(refused.value)
    for known in ("bonbon", "champion", "previous", "base", "tiny-bonbon-0001", "tiny-bonbon-0002"):
        assert known in str(refused.value)
    assert refused.value.param == "model"


def test_the_model_list_names_every_alias_and_version() -> None:
    served = {model.id: model for model in make(DISTILLED).models()}
    assert set(served) == {"bonbon", "champion", "previous", "base", *LOADED}
    assert (served["bonbon"].version, served["bonbon"].parent) == ("tiny-bonbon-0002", "tiny-bonbon-0001")
    assert served["base"].version == "tiny"
    assert served["tiny"].created == int(CREATED.timestamp())


async def test_a_version_is_drained_when_its_last_holder_has_gone() -> None:
    router = make(DISTILLED)
    first, second = router.route("bonbon"), router.route("bonbon")
    with first as route:
        with second:
            assert router.references("tiny-bonbon-0002") == router.in_flight == 2
            drained = asyncio.create_task(router.drained("tiny-bonbon-0002"))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not drained.done()
        router.publish(Routes("tiny", "tiny", {"tiny": LOADED["tiny"]}))
        assert route.version == "tiny-bonbon-0002"  # the plan keeps its version after the flip
    await asyncio.wait_for(drained, 1)
    assert router.in_flight == 0


async def test_what_nobody_holds_is_drained_at_once() -> None:
    router = make()
    await asyncio.wait_for(router.drained("tiny"), 1)
    await asyncio.wait_for(router.all_drained(), 1)


async def test_all_drained_waits_for_every_version() -> None:
    router = make(DISTILLED)
    with router.hold("tiny"):
        with router.hold("tiny-bonbon-0001"):
            drained = asyncio.create_task(router.all_drained())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not drained.done()
    await asyncio.wait_for(drained, 1)


def test_a_reference_is_released_when_the_request_fails() -> None:
    router = make()
    with pytest.raises(RuntimeError), router.route("base"):
        raise RuntimeError
    assert router.in_flight == 0


def test_a_version_that_is_not_loaded_cannot_be_held() -> None:
    router = make()
    with pytest.raises(UnknownVersion), router.hold("tiny-bonbon-0001"):
        pass
    assert router.in_flight == 0
