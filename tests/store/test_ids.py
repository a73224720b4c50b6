"""Tests of identifiers: version-7 UUIDs in the order of creation."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import UUID

from bonbon.ids import time_ordered_id


def test_it_is_a_version_7_uuid_of_now() -> None:
    before = datetime.now(UTC).timestamp()
    identifier = UUID(time_ordered_id())
    assert identifier.version == 7
    assert identifier.variant == "specified in RFC 4122"
    assert -1 < (identifier.int >> 80) / 1000 - before < 60


def test_they_sort_in_the_order_they_were_made() -> None:
    made = [time_ordered_id() for _ in range(20_000)]
    assert made == sorted(set(made))


def test_threads_get_different_ones() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: [time_ordered_id() for _ in range(1000)], range(8)))
    for of_one_call in made:
        assert of_one_call == sorted(of_one_call)
    assert len({identifier for of_one_call in made for identifier in of_one_call}) == 8000
