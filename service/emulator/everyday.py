"""The faults everybody meets sooner or later, ready to be switched on by hand.

Each is an ordinary rule of a fault script under a name of its own; what they do lies with the player.
"""

from __future__ import annotations

from typing import Final

import msgspec

from service.emulator.faults import (
    Cut,
    HalfJson,
    Html,
    Lock,
    LognormalLatency,
    Match,
    Moderation,
    RateThrottle,
    Rule,
    Silence,
    Status,
    Unauthorized,
    Unpaid,
    When,
    WrongPath,
)

_ADDING: Final = Match(operations=("create_items",))
_SOMETIMES: Final = When(probability=0.2)


class Everyday(msgspec.Struct, frozen=True):
    """A rule, with what a reader who has never seen a script should know of it."""

    rule: Rule
    says: str


EVERYDAY: Final = (
    Everyday(Rule(LognormalLatency(1.0), name="slow"), "Half of the answers take more than a second."),
    Everyday(Rule(Status(status=500), when=_SOMETIMES, name="server error"), "One request in five: 500, not stored."),
    Everyday(
        Rule(Status(status=503, form="html"), name="down"), "Every request: 503 and a gateway's page, as in an outage."
    ),
    Everyday(
        Rule(RateThrottle(requests_per_second=5, burst=5), _ADDING, name="throttle"),
        "Adding items: 429 beyond five requests a second.",
    ),
    Everyday(Rule(Lock(), _ADDING, name="locked"), "Adding items: 400 conversation_locked."),
    Everyday(Rule(Cut(), _ADDING, _SOMETIMES, name="cut before"), "One in five: cut, nothing stored."),
    Everyday(
        Rule(Cut(stores="all"), _ADDING, _SOMETIMES, name="cut after"),
        "One in five: cut although everything is stored.",
    ),
    Everyday(Rule(Silence(), _ADDING, _SOMETIMES, name="silence"), "One in five is never answered."),
    Everyday(Rule(HalfJson(), _ADDING, _SOMETIMES, name="half JSON"), "One in five: half an answer; stored."),
    Everyday(
        Rule(Moderation(names_item=True), Match(text="forbidden"), name="moderation"),
        "400 DataInspectionFailed for items that contain “forbidden”.",
    ),
    Everyday(Rule(Unpaid(), name="unpaid"), "Every request: 400 Arrearage."),
    Everyday(Rule(Unauthorized(), name="key rejected"), "Every request: 401, whatever the key."),
    Everyday(Rule(WrongPath(), name="wrong path"), "Every request: a gateway's 404, as with a wrong base URL."),
    Everyday(Rule(Html(), name="login page"), "Every request: 200 and a page in the answer's place."),
)
