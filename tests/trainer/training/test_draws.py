"""Tests of draw orders, which a training gives through files in its run directory."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bonbon.engines.engine import VersionKind
from bonbon.errors import BonbonError, EngineError, PromptTooLong, RewardError, UserError
from trainer.training.failure import Failure
from trainer.training.stages.draws import DrawBox, DrawOrder


@pytest.fixture
def box(tmp_path: Path) -> DrawBox:
    return DrawBox(tmp_path)


@pytest.fixture
def training(box: DrawBox) -> Iterator[ThreadPoolExecutor]:
    """Yields a thread pool in which trainings wait, until the test is over."""
    with ThreadPoolExecutor() as pool:
        yield pool
        for order in box.open_orders():
            box.fail(order, TimeoutError("the test is over"))


def order_of(box: DrawBox, number: int = 7) -> DrawOrder:
    policy = box.policy(number)
    policy.mkdir(parents=True)
    (policy / "adapter_model.safetensors").write_bytes(b"weights")
    return DrawOrder(number, str(policy), VersionKind.ADAPTER, (3, 1), count=4, seed=9)


def next_order(box: DrawBox, waiting: "Future[Path]") -> DrawOrder:
    while not (orders := box.open_orders()):
        assert not waiting.done()
    return orders[0]


def test_an_order_is_fulfilled_once(box: DrawBox, training: ThreadPoolExecutor) -> None:
    order = order_of(box)
    waiting = training.submit(box.wait, order)
    assert next_order(box, waiting) == order, "what the other process reads is what was ordered"
    assert Path(order.policy).is_dir()
    assert not waiting.done()
    box.groups(order.number).write_bytes(b"groups")
    assert waiting.result(60) == box.groups(order.number)
    assert not Path(order.policy).exists()
    assert box.open_orders() == []
    # A training that was cut off asks again, and nobody draws.
    assert DrawBox(box.directory.parent).wait(order).read_bytes() == b"groups"
    assert box.open_orders() == []


def test_another_order_of_that_number_is_given(box: DrawBox, training: ThreadPoolExecutor) -> None:
    first = order_of(box)
    box.directory.mkdir(exist_ok=True)
    waiting = training.submit(box.wait, first)
    next_order(box, waiting)
    box.groups(first.number).write_bytes(b"old")
    waiting.result(60)
    second = replace(first, rows=(3, 1, 2))
    assert box.fulfilled(first)
    assert not box.fulfilled(second)
    waiting = training.submit(box.wait, second)
    while box.open_orders() != [second]:
        assert not waiting.done()
    box.groups(first.number).write_bytes(b"new")
    assert waiting.result(60).read_bytes() == b"new"


def test_what_keeps_the_other_process_from_drawing_is_raised_and_the_order_given_again(
    box: DrawBox, training: ThreadPoolExecutor
) -> None:
    order = order_of(box)
    waiting = training.submit(box.wait, order)
    box.fail(next_order(box, waiting), UserError("set the other engine", param="engine"))
    with pytest.raises(UserError, match=r"^set the other engine$") as caught:
        waiting.result(60)
    assert caught.value.param == "engine"
    assert Path(order.policy).is_dir(), "its weights are for the next attempt"
    waiting = training.submit(box.wait, order)
    assert next_order(box, waiting) == order
    box.groups(order.number).write_bytes(b"groups")
    waiting.result(60)


def test_orders_are_open_until_they_are_fulfilled_or_have_failed(box: DrawBox, training: ThreadPoolExecutor) -> None:
    assert box.open_orders() == [], "before there is a directory"
    orders = [order_of(box, number) for number in (120, 3, 99)]
    waiting = [training.submit(box.wait, order) for order in orders]
    while len(box.open_orders()) < 3:
        assert not any(one.done() for one in waiting)
    assert [order.number for order in box.open_orders()] == [3, 99, 120]
    box.groups(3).write_bytes(b"groups")
    assert [order.number for order in box.open_orders()] == [99, 120]
    box.fail(orders[2], RewardError("the reward is away"))
    assert isinstance(waiting[2].exception(60), RewardError)
    box.groups(120).write_bytes(b"groups")
    for one in waiting[:2]:
        one.result(60)


def test_what_a_training_that_was_cut_off_left_open_is_withdrawn(box: DrawBox, training: ThreadPoolExecutor) -> None:
    """The training gives the order again when it gets there; fulfilled orders stay fulfilled."""
    box.directory.mkdir()
    orders = [DrawOrder(number, "", VersionKind.BASE, (0,), 4, 0) for number in (1, 2)]
    for order in orders:
        (box.directory / f"order-{order.number:06d}.json").write_text(json.dumps(asdict(order)))
    box.groups(1).write_bytes(b"groups")
    assert box.open_orders() == orders[1:]
    box.withdraw_open()
    assert box.open_orders() == []
    assert box.wait(orders[0]).read_bytes() == b"groups"
    waiting = training.submit(box.wait, orders[1])
    assert next_order(box, waiting) == orders[1]
    box.groups(2).write_bytes(b"groups")
    waiting.result(60)


def test_draws_of_the_base_need_no_policy(box: DrawBox, training: ThreadPoolExecutor, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    waiting = training.submit(box.wait, DrawOrder(99, "", VersionKind.BASE, (0,), 4, 0))
    assert next_order(box, waiting).kind is VersionKind.BASE
    box.groups(99).write_bytes(b"groups")
    waiting.result(60)
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("lower n", param="n"), UserError, "^lower n$"),
        (PromptTooLong("too long", param="max_tokens"), UserError, "^too long$"),
        (EngineError("the engine is away"), EngineError, "^the engine is away$"),
        (RewardError("the reward is away"), RewardError, "^the reward is away$"),
        (BonbonError("the loss is nan"), BonbonError, "^the loss is nan$"),
        (ZeroDivisionError("division by zero"), BonbonError, "^ZeroDivisionError: division by zero$"),
    ],
)
def test_an_error_arrives_as_it_left(error: Exception, kind: type[BonbonError], message: str) -> None:
    arrived = Failure(**json.loads(json.dumps(asdict(Failure.of(error))))).error()
    assert type(arrived) is kind
    with pytest.raises(kind, match=message):
        raise arrived
    assert getattr(arrived, "param", None) == getattr(error, "param", None)


def test_a_run_that_has_ended_leaves_no_order_open(box: DrawBox, training: ThreadPoolExecutor) -> None:
    """No order appears open while its draws are being deleted either."""
    for number in range(200):
        order = DrawOrder(number, "", VersionKind.BASE, (0,), 4, 0)
        box.directory.mkdir(exist_ok=True)
        box.groups(number).touch()
        (box.directory / f"order-{number:06d}.json").write_text(json.dumps(asdict(order)))
    assert box.open_orders() == []
    removing = training.submit(box.remove)
    seen: list[DrawOrder] = []
    while not removing.done():
        seen += box.open_orders()
    removing.result()
    assert seen == box.open_orders() == []
    assert list(box.directory.parent.iterdir()) == []
    box.remove()
