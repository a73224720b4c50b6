"""A short version of `make chaos`, for every change."""

from pathlib import Path

from tests.long.chaos import chaos
from tests.support.service.load import Compared


async def test_every_answered_request_is_logged_once_however_often_it_is_killed(tmp_path: Path) -> None:
    load, compared = await chaos(tmp_path, kills=25)
    assert load.answered
    assert load.retried, "no request met a kill: nothing was tested"
    assert compared == Compared()
