"""The demo's text world."""

import random
from statistics import mean, pstdev

from bonbon.demo import world


def test_requests_are_distinct_and_follow_from_the_seed() -> None:
    requests = world.requests(3, 5000)
    assert len(set(requests)) == 5000
    assert requests == world.requests(3, 5000)
    assert len(set(requests) & set(world.requests(4, 5000))) < 2500


def test_every_request_has_a_topic_and_strangers_have_none() -> None:
    assert all(world.topic_of(request) for request in world.requests(0, 500))
    assert world.topic_of("What is the capital of France?") is None


def test_replies_are_made_of_the_worlds_sentences() -> None:
    rng = random.Random(0)
    for request in world.requests(1, 300):
        reply = world.reply(request, rng)
        assert world.sentences(reply)
        assert all(world.is_sentence(sentence) for sentence in world.sentences(reply))


def test_quality_prefers_relevant_steps_warmth_and_speed() -> None:
    request = "My lamp arrived broken."
    warm = "I am truly sorry about the trouble this has caused you."
    relevant = "Please send us a photo of the damage and keep the box."
    elsewhere = "I have unlocked your account just now."
    assert world.quality(request, f"{warm} {relevant}") > world.quality(request, f"{warm} {elsewhere}")
    assert world.quality(request, f"{warm} {relevant}") > world.quality(
        request, f"That is not really our fault. {relevant}"
    )
    assert world.quality(request, "This will take about 2 days.") > world.quality(
        request, "This will take about 9 days."
    )
    assert world.quality(request, f"{warm} {warm}") < world.quality(request, warm)
    assert world.quality(request, "Lamp the is of.") < world.quality(request, "Hello.")


def test_quality_varies_widely() -> None:
    rng = random.Random(0)
    values = [world.quality(request, world.reply(request, rng)) for request in world.requests(2, 1000)]
    assert -1 < mean(values) < 3
    assert pstdev(values) > 1
    assert len(set(values)) > 300
