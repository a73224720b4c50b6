"""A small world of customer-support requests and replies.

Replies are composed of sentences whose tone, concreteness, relevance and number vary freely, so that a policy which
imitates them is diverse and mediocre. `quality` rates each reply.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

# fmt: off
PRODUCTS = (
    "lamp", "kettle", "backpack", "headset", "keyboard", "jacket", "blender", "tent", "camera", "mattress",
    "bicycle", "monitor", "speaker", "printer", "heater", "watch", "suitcase", "desk", "drill", "vacuum",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# fmt: on
OPENINGS = (
    "",
    "Hello, ",
    "Hi, ",
    "Good morning, ",
    "Excuse me, ",
    "Hello again, ",
)
ENDINGS = (
    "",
    " Can you help?",
    " What can I do?",
    " Please advise.",
    " I need this solved soon.",
    " Thank you.",
    " I have written before.",
)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of requests: how customers phrase it, and what an agent can do about it."""

    complaints: tuple[str, ...]
    steps: tuple[str, ...]


TOPICS = (
    Topic(
        (
            "my {product} was due on {day} and it is still not here.",
            "the {product} from order {order} has not arrived.",
            "where is my {product}? It should have come on {day}.",
        ),
        (
            "I have asked the carrier to find your parcel today.",
            "You can follow the parcel with the tracking link in your email.",
            "If it is not there by {day}, we will send a new {product} at once.",
            "I have moved your delivery to the fast lane.",
        ),
    ),
    Topic(
        (
            "my {product} arrived broken.",
            "the {product} from order {order} has a crack in it.",
            "I opened the box on {day} and the {product} was damaged.",
        ),
        (
            "Please send us a photo of the damage and keep the box.",
            "A new {product} leaves our warehouse on {day}.",
            "The return label in your email lets you send the broken one back for free.",
            "I have reported the damage to the warehouse.",
        ),
    ),
    Topic(
        (
            "I was charged twice for the {product}.",
            "there are two payments for order {order} on my card.",
            "why did you take the money for my {product} twice?",
        ),
        (
            "I have cancelled the second payment.",
            "The money will be back on your card by {day}.",
            "You will get an email with the corrected invoice.",
            "Our billing team has checked both payments for order {order}.",
        ),
    ),
    Topic(
        (
            "I want to return the {product} and get my money back.",
            "how do I get a refund for order {order}?",
            "the {product} is not what I expected and I want a refund.",
        ),
        (
            "Print the return label in your email and drop the parcel at any post office.",
            "We refund the full price as soon as the {product} is back.",
            "A driver can pick the {product} up on {day}.",
            "You can keep the {product} until the refund is on your card.",
        ),
    ),
    Topic(
        (
            "I cannot log in to my account.",
            "my password does not work since {day}.",
            "the app says my account is locked.",
        ),
        (
            "I have unlocked your account just now.",
            "Use the link in your email to choose a new password.",
            "Close the app, open it again and log in with your email address.",
            "The link works until {day}.",
        ),
    ),
    Topic(
        (
            "please send order {order} to a new address.",
            "I moved and my {product} will go to the old address.",
            "can you change the address for my {product} before {day}?",
        ),
        (
            "I have changed the address on order {order}.",
            "Please check the new address on your account page.",
            "The driver has the new address for {day}.",
            "Your old address is no longer on the account.",
        ),
    ),
    Topic(
        (
            "you sent me a {product} that I did not order.",
            "I got the wrong {product} in order {order}.",
            "the {product} is in the wrong color.",
        ),
        (
            "The right {product} is on its way and arrives on {day}.",
            "A driver will take the wrong one back when the right one comes.",
            "You do not need to pack it again.",
            "I have corrected order {order} in our system.",
        ),
    ),
    Topic(
        (
            "I want to cancel my subscription.",
            "please stop my monthly plan from {day}.",
            "how do I end the plan for my {product}?",
        ),
        (
            "Your plan ends on {day} and costs nothing after that.",
            "I have cancelled the plan and sent you an email about it.",
            "You can start it again at any time on your account page.",
            "The last payment is on its way back to your card.",
        ),
    ),
    Topic(
        (
            "my {product} stopped working after a week.",
            "the {product} does not turn on.",
            "the {product} from order {order} makes a loud noise.",
        ),
        (
            "Hold the power button for ten seconds to reset the {product}.",
            "Your warranty covers the repair in full.",
            "I have booked a repair for {day}.",
            "If the reset does not help, we will replace the {product}.",
        ),
    ),
    Topic(
        (
            "my discount code does not work for the {product}.",
            "the code I got on {day} is refused.",
            "order {order} was charged without my discount.",
        ),
        (
            "I have applied the discount to order {order}.",
            "Please use the new code in your email.",
            "The new code works until {day}.",
            "The difference is on its way back to your card.",
        ),
    ),
)

GREETINGS = {
    "Hi there, and thank you so much for writing!": 0.7,
    "Hello, it is good to hear from you.": 0.6,
    "Thank you for your message.": 0.35,
    "Hello.": 0.15,
    "Good day.": 0.1,
    "We got your message.": -0.1,
    "Yes?": -0.6,
}
EMPATHY = {
    "I am truly sorry about the trouble this has caused you.": 1.0,
    "I can see how annoying this must be, and I want to put it right.": 1.1,
    "We are sorry for the trouble.": 0.5,
    "I understand.": 0.2,
    "This happens from time to time.": -0.4,
    "That is not really our fault.": -1.0,
    "Many people ask this.": -0.5,
}
VAGUE = {
    "We will look into it.": -0.2,
    "Someone may contact you later.": -0.4,
    "There is not much that we can say right now.": -0.8,
    "Please be patient.": -0.6,
    "Our team is working on many requests.": -0.5,
    "Please read our help pages.": -0.7,
}
OFFERS = "I have added a credit of {money} dollars to your account."
PROMISE = "This will take about {days} days."
CLOSINGS = {
    "Please write to me at any time if there is anything else I can do for you!": 0.8,
    "We are happy to help if you have any other questions.": 0.6,
    "Have a lovely day!": 0.5,
    "Thank you for your patience.": 0.3,
    "Kind regards, the support team.": 0.2,
    "This request is now closed.": -0.5,
    "Do not reply to this message.": -0.7,
}
STEP_VALUES = (1.5, 1.1, 0.6, 0.1)
OFF_TOPIC = -1.2
REPEATED = -0.8
UNKNOWN = -1.5
COMFORTABLE_WORDS = (25, 55)

_SENTENCE = re.compile(r"[^.!?]+[.!?]")
_PLACES = {
    "{product}": f"(?:{'|'.join(PRODUCTS)})",
    "{day}": f"(?:{'|'.join(DAYS)})",
    "{order}": r"\d+",
    "{money}": r"(?P<money>\d+)",
    "{days}": r"(?P<days>\d+)",
}


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    for place, expression in _PLACES.items():
        text = text.replace(place, expression)
    return re.compile(text)


_STEPS = [(_pattern(step), topic) for topic in TOPICS for step in topic.steps]
_COMPLAINTS = [(_pattern(complaint), topic) for topic in TOPICS for complaint in topic.complaints]
_TONES = GREETINGS | EMPATHY | VAGUE | CLOSINGS
_OFFER, _PROMISE = _pattern(OFFERS), _pattern(PROMISE)


def requests(seed: int, count: int) -> list[str]:
    """Returns `count` requests, distinct unless the world runs out of them; the same seed gives the same requests."""
    rng = random.Random(f"requests/{seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        found[request(rng)] = None
    return list(found)


def request(rng: random.Random) -> str:
    """Returns one request."""
    complaint = _fill(rng.choice(rng.choice(TOPICS).complaints), rng, order=rng.randint(100, 999))
    opening = rng.choice(OPENINGS)
    text = opening + (complaint if opening else complaint[0].upper() + complaint[1:])
    return text + rng.choice(ENDINGS)


def reply(asked: str, rng: random.Random) -> str:
    """Returns one agent's reply, anything from a curt brush-off to a warm and concrete answer."""
    return " ".join(_sentences(asked, rng))


def _sentences(asked: str, rng: random.Random) -> Iterator[str]:
    topic = topic_of(asked) or rng.choice(TOPICS)
    if rng.random() < 0.55:
        yield rng.choice(list(GREETINGS))
    if rng.random() < 0.6:
        yield rng.choice(list(EMPATHY))
    steps_from = topic if rng.random() < 0.8 else rng.choice(TOPICS)
    steps = rng.choices((0, 1, 2, 3), (0.3, 0.35, 0.25, 0.1))[0]
    details = _details(asked, rng)
    for step in rng.sample(steps_from.steps, steps):
        yield _fill(step, rng, **details)
    yield from rng.sample(list(VAGUE), rng.choices((0, 1, 2), (0.5, 0.35, 0.15))[0] if steps else 1)
    if rng.random() < 0.35:
        yield _fill(PROMISE, rng, days=rng.randint(2, 9))
    if rng.random() < 0.25:
        yield _fill(OFFERS, rng, money=rng.choice((2, 5, 10, 15, 20, 25, 30)))
    if rng.random() < 0.6:
        yield rng.choice(list(CLOSINGS))


def _details(asked: str, rng: random.Random) -> dict[str, object]:
    """Returns the request's own product and order, which a reply should repeat."""
    product = re.search(_PLACES["{product}"], asked)
    order = re.search(r"\d+", asked)
    return {
        "product": product.group() if product else rng.choice(PRODUCTS),
        "order": order.group() if order else rng.randint(100, 999),
    }


def _fill(template: str, rng: random.Random, **details: object) -> str:
    values: dict[str, object] = {"product": rng.choice(PRODUCTS), "day": rng.choice(DAYS)} | details
    return template.format(**values)


def topic_of(asked: str) -> Topic | None:
    """Returns the topic of a request, or None for a request from outside this world."""
    text = asked[:1].lower() + asked[1:]
    for pattern, topic in _COMPLAINTS:
        if pattern.search(asked) or pattern.search(text):
            return topic
    return None


def sentences(text: str) -> list[str]:
    """Returns a text's sentences."""
    return [sentence.strip() for sentence in _SENTENCE.findall(text)]


def is_sentence(sentence: str) -> bool:
    """Returns whether a sentence can occur in this world's replies."""
    return sentence in _TONES or any(
        pattern.fullmatch(sentence) for pattern in (_OFFER, _PROMISE, *(pattern for pattern, _ in _STEPS))
    )


def quality(asked: str, text: str) -> float:
    """Rates a reply by tone, relevant steps (with diminishing value), speed, credit and a comfortable length."""
    topic = topic_of(asked)
    total, steps, seen = 0.0, 0, set()
    for sentence in sentences(text):
        if sentence in seen:
            total += REPEATED
        elif sentence in _TONES:
            total += _TONES[sentence]
        elif match := _PROMISE.fullmatch(sentence):
            total += 0.9 - 0.2 * int(match["days"])
        elif match := _OFFER.fullmatch(sentence):
            total += 0.2 + 0.03 * int(match["money"])
        elif step := next((found for pattern, found in _STEPS if pattern.fullmatch(sentence)), None):
            total += STEP_VALUES[min(steps, len(STEP_VALUES) - 1)] if step is topic else OFF_TOPIC
            steps += step is topic
        else:
            total += UNKNOWN
        seen.add(sentence)
    words = len(text.split())
    low, high = COMFORTABLE_WORDS
    return total - 0.04 * max(0, low - words) - 0.04 * max(0, words - high)
