"""A short version of `make soak`, for every change."""

from pathlib import Path

from tests.long.soak import soak


async def test_no_request_fails_while_versions_come_and_go(tmp_path: Path) -> None:
    found = await soak(tmp_path, requests=600, swaps=6)
    assert found.failures == []
    assert found.misnamed == []
    assert found.swaps == 6
    assert len(found.requests) >= 600
    assert len({request.version for request in found.requests}) > 3
