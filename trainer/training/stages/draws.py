"""Files in the run directory through which a training orders draws of its policy, wherever it runs.

The training process writes the order and the policy's weights, and waits. The process that launched it draws with the
engine, scores with the reward and writes the groups (`trainer.drawing`). Draws are kept until the run ends, so that a
resumed training does not pay for them again.
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
"""Seconds between checks for files from the other process."""


@dataclass(frozen=True, slots=True)
class DrawOrder:
    """An order to draw `count` candidates per row from the policy in `policy`, or from the base.

    `kind` says whether `policy` is an adapter or whole weights. The order asks for one group for each of `rows`, which
    are rows of the run's snapshot, with that row's prompt and sampling settings. `number` identifies the order in its
    run, and `seed` determines its draws as far as the engine allows.
    """

    number: int
    policy: str
    kind: VersionKind
    rows: tuple[int, ...]
    count: int
    seed: int


class DrawBox:
    """The orders of a run and the groups drawn for them."""

    def __init__(self, run_dir: Path) -> None:
        self.directory = run_dir / "draws"

    def policy(self, number: int) -> Path:
        """Returns the directory where the policy of an order is stored before the order is given."""
        return self.directory / f"policy-{number:06d}"

    def groups(self, number: int) -> Path:
        """Returns the Parquet file of an order's groups, which exists once they are drawn."""
        return self.directory / f"groups-{number:06d}.parquet"

    def fulfilled(self, order: DrawOrder) -> bool:
        """Returns whether this order was given before and its groups exist."""
        given = read_json(self._order(order.number)) == json.loads(json.dumps(asdict(order)))
        return given and self.groups(order.number).exists()

    def wait(self, order: DrawOrder) -> Path:
        """Gives the order, waits until it is fulfilled, and returns the file with its groups. Then deletes the policy.

        An order that was fulfilled before is not given again.

        Raises:
            BonbonError: The other process failed to draw; the error is its own.
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
        """Returns the orders that are neither fulfilled nor failed, oldest first."""
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:  # no order was given yet, or the run has ended
            return []
        found = []
        for name in names:
            number = _number(name)
            if number is None or self.groups(number).exists() or self._failure(number).exists():
                continue
            # Reading the files last ensures that an order which is still present without groups has not been fulfilled.
            if (order := _read(self.directory / name)) is not None:
                found.append(order)
        return found

    def remove(self) -> None:
        """Deletes all orders and draws in one step, so that other processes see either all of them or none."""
        gone = self.directory.with_name(f".{self.directory.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        if self.directory.exists():
            self.directory.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def withdraw_open(self) -> None:
        """Deletes the unfulfilled orders of an interrupted training, which gives them again if it needs them."""
        for order in self.open_orders():
            self._order(order.number).unlink(missing_ok=True)

    def fail(self, order: DrawOrder, error: Exception) -> None:
        """Reports to the training why its order cannot be fulfilled."""
        write_json(self._failure(order.number), asdict(Failure.of(error)))

    def _order(self, number: int) -> Path:
        return self.directory / f"order-{number:06d}.json"

    def _failure(self, number: int) -> Path:
        return self.directory / f"failure-{number:06d}.json"


def _number(name: str) -> int | None:
    """Returns the number of the order in the file of this name, or None when the file is not an order."""
    found = re.fullmatch(r"order-(\d+)\.json", name)
    return int(found[1]) if found else None


def _read(path: Path) -> DrawOrder | None:
    """Returns the order, or None when the file no longer exists."""
    values = read_json(path)
    if values is None:
        return None
    return DrawOrder(**values | {"kind": VersionKind(values["kind"]), "rows": tuple(values["rows"])})
