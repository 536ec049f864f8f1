"""What the demo publishes: chats that look like people's, made from a seed.

Decides who writes when, in what form, and what; it knows neither Kafka nor the clock. Every text holds a number
of its own, because the audit tells items apart by their text.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Form = Literal["native", "shorthand", "invalid", "tombstone"]

POPULARITY_EXPONENT = 1.0
"""Of Zipf's law: among 300 conversations the liveliest has a sixth of all events."""
SHORTHAND_SHARE = 0.04
EVENTS_AN_INVALID_ONE = 700

USER_TEXTS = (
    "Hi, where is my parcel {}?",
    "Order {} came without the charger.",
    "Can I still change the address of order {}?",
    "I'd like to send {} back, it is too small.",
    "Ticket {} is three days old now. Any news?",
    "Thanks! And invoice {}, has it been paid?",
    "Could you move booking {} to Friday, please?",
    "The code {} does not work for me 😕",
    "Grüße aus Köln! Kann ich {} auch abholen?",
    "Is {} back in stock?",
    "I was charged twice for {}.",
    "Never mind, {} has just arrived!",
)
ASSISTANT_TEXTS = (
    "Parcel {} left our depot this morning.",
    "Sorry about that! A charger for order {} is on its way.",
    "Of course. What is the new address for order {}?",
    "No problem: the label for {} is in your inbox.",
    "I have asked the workshop about ticket {} and will write as soon as I know.",
    "Yes, invoice {} was paid on Monday.",
    "Done: booking {} is on Friday at ten.",
    "Please try {} again, without the spaces.",
    "Natürlich, {} liegt ab 14 Uhr für Sie bereit.",
    "We expect {} next week. Shall I let you know?",
    "You are right. The second payment for {} is being refunded.",
    "Glad to hear that {} arrived. Anything else?",
)
INVALID_VALUES = (
    b"this is no JSON",
    b'{"item":{"role":"robot","content":"beep"}}',
    b'{"item":{"role":"user"}}',
    b'{"item":{"role":"user","content":[]}}',
    b'{"item":{"type":"function_call","role":"user","content":"ring()"}}',
    b'{"note":"neither an item nor role and content"}',
)
"""One of each way to be no event."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One record to publish: when (seconds from the beginning), for which conversation (a number), and what."""

    number: int
    at_seconds: float
    conversation: int
    form: Form
    role: str = ""
    text: str = ""
    value: bytes = b""

    def write(self, conversation_id: str, occurred_at: str) -> tuple[bytes, bytes | None]:
        """Key and value of the record."""
        key = conversation_id.encode()
        if self.form == "tombstone":
            return key, None
        if self.form == "invalid":
            return key, self.value
        message = {"role": self.role, "content": self.text}
        event = {"conversation_id": conversation_id, "event_id": f"demo-{self.number}", "occurred_at": occurred_at}
        body = message if self.form == "shorthand" else {"item": {"type": "message", **message}}
        return key, json.dumps(event | body, ensure_ascii=False).encode()


def traffic(*, events: int, conversations: int, rate: float, seed: int) -> list[Arrival]:
    """Make ``events`` events, a handful of them invalid, and one tombstone more, in the order of their arrival.

    They arrive at random (a Poisson process of ``rate`` a second) in conversations of unequal popularity (Zipf);
    in each, user and assistant take turns.
    """
    dice = random.Random(seed)  # noqa: S311 - chance that can be repeated is what is wanted
    ranks = list(range(conversations))
    dice.shuffle(ranks)
    weights = list(itertools.accumulate((rank + 1) ** -POPULARITY_EXPONENT for rank in ranks))
    forms = _forms(events, dice)
    turns = [0] * conversations
    arrivals = []
    now = 0.0
    invalid = 0
    for number, form in enumerate(forms):
        now += dice.expovariate(rate)
        conversation = dice.choices(range(conversations), cum_weights=weights)[0]
        if form in {"native", "shorthand"}:
            by_user = turns[conversation] % 2 == 0
            turns[conversation] += 1
            text = dice.choice(USER_TEXTS if by_user else ASSISTANT_TEXTS).format(10_000 + number)
            arrivals.append(Arrival(number, now, conversation, form, "user" if by_user else "assistant", text))
        else:
            value = INVALID_VALUES[invalid % len(INVALID_VALUES)] if form == "invalid" else b""
            invalid += form == "invalid"
            arrivals.append(Arrival(number, now, conversation, form, value=value))
    return arrivals


def count(arrivals: Sequence[Arrival], *forms: Form) -> int:
    """How many of ``arrivals`` have one of these forms."""
    return sum(arrival.form in forms for arrival in arrivals)


def _forms(events: int, dice: random.Random) -> list[Form]:
    invalid = min(events // 2, 1 + events // EVENTS_AN_INVALID_ONE)
    forms: list[Form] = ["shorthand" if dice.random() < SHORTHAND_SHARE else "native" for _ in range(events - invalid)]
    for _ in range(invalid):
        forms.insert(dice.randrange(len(forms) + 1), "invalid")
    forms.insert(dice.randrange(len(forms) + 1), "tombstone")
    return forms
