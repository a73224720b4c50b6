"""Clients that disconnect: the short form of what `make soak` repeats fifty thousand times."""

from pathlib import Path

from tests.long.disconnects import disconnects


async def test_whoever_hangs_up_leaves_nothing_behind(tmp_path: Path) -> None:
    found = await disconnects(tmp_path, 1500, looks=3)
    assert found.problems == []
    assert found.held[-1].disconnects == 1500
