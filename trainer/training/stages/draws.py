"""How a training that runs anywhere asks for draws of its policy: by files in the run directory.

The training process writes what is to be drawn, beside the policy to draw from, and waits. The process that launched
it draws with the engine, scores with the reward and writes the groups (`trainer.drawing`). Draws are kept until the run
has ended, so that a training which is resumed does not pay for them again.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bonbon.engines.engine import VersionKind
from trainer.result_files import read_json, write_json
from trainer.training.failure import Failure

POLL = 0.02
"""Seconds between looks at what is written in another process."""


@dataclass(frozen=True, slots=True)
class DrawOrder:
    """Draw `count` candidates from the policy in `policy` (an adapter or whole weights, as `kind` says), or the base.

    One group for each of `rows`, which are rows of the run's snapshot: with that row's prompt and sampling settings.
    `number` names the order in its run, and `seed` decides its draws as far as the engine allows.
    """

    number: int
    policy: str
    kind: VersionKind
    rows: tuple[int, ...]
    count: int
    seed: int


class DrawBox:
    """The orders of a run and what was drawn for them."""

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / "draws"

    def policy(self, number: int) -> Path:
        """Where the policy of an order is put before the order is given."""
        return self.directory / f"policy-{number:06d}"

    def groups(self, number: int) -> Path:
        """The Parquet file with an order's groups, which is there when they are drawn."""
        return self.directory / f"groups-{number:06d}.parquet"

    def fulfilled(self, order: DrawOrder) -> bool:
        """Whether this very order was given before, and its groups are there."""
        given = read_json(self._order(order.number)) == json.loads(json.dumps(asdict(order)))
        return given and self.groups(order.number).exists()

    def wait(self, order: DrawOrder) -> Path:
        """Give the order, wait until it is fulfilled, and return the file with its groups. The policy is deleted then.

        An order that was fulfilled before is not given again.

        Raises:
            BonbonError: what kept the other process from drawing.
        """
        groups = self.groups(order.number)
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.fulfilled(order):
            groups.unlink(missing_ok=True)
            self._failure(order.number).unlink(missing_ok=True)
            write_json(self._order(order.number), asdict(order))
        while not groups.exists():
            if failure := read_json(self._failure(order.number)):
                self._failure(order.number).unlink()
                raise Failure(**failure).error()
            time.sleep(POLL)
        if order.kind is not VersionKind.BASE:
            shutil.rmtree(order.policy, ignore_errors=True)
        return groups

    def open_orders(self) -> Sequence[DrawOrder]:
        """Orders that are neither fulfilled nor failed, the first one first."""
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:  # none was given yet, or the run has ended
            return []
        found = []
        for name in names:
            number = _number(name)
            if number is None or self.groups(number).exists() or self._failure(number).exists():
                continue
            # Read last: an order that is still there after that has no groups because nobody has drawn them.
            if (order := _read(self.directory / name)) is not None:
                found.append(order)
        return found

    def remove(self) -> None:
        """Delete all orders and draws, at once for whoever looks for open orders."""
        gone = self.directory.with_name(f".{self.directory.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        if self.directory.exists():
            self.directory.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def withdraw_open(self) -> None:
        """Forget the orders that a training which was cut off has left open; it gives them again if it needs them."""
        for order in self.open_orders():
            self._order(order.number).unlink(missing_ok=True)

    def fail(self, order: DrawOrder, error: Exception) -> None:
        """Tell the training why its order cannot be fulfilled."""
        write_json(self._failure(order.number), asdict(Failure.of(error)))

    def _order(self, number: int) -> Path:
        return self.directory / f"order-{number:06d}.json"

    def _failure(self, number: int) -> Path:
        return self.directory / f"failure-{number:06d}.json"


def _number(name: str) -> int | None:
    """Of the order in the file of this name; None when it holds none."""
    found = re.fullmatch(r"order-(\d+)\.json", name)
    return int(found[1]) if found else None


def _read(path: Path) -> DrawOrder | None:
    """None where the order is no longer there."""
    values = read_json(path)
    if values is None:
        return None
    return DrawOrder(**values | {"kind": VersionKind(values["kind"]), "rows": tuple(values["rows"])})
