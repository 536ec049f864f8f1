"""An API that bears only so much, and does not say how much: nearly all of it is used, and few are turned away."""

from __future__ import annotations

import email.utils
import itertools
import math
import time
from typing import TYPE_CHECKING

from fault_run import messages, named, soak

from service.emulator.faults import ConcurrencyThrottle, FaultScript, Match, RateThrottle, Rule, Status, When

if TYPE_CHECKING:
    from collections.abc import Callable

    from fault_run import Ended, FaultRun, MakeRun, Span

    from service.emulator.faults import Effect

WARM_UP_SECONDS = soak(20, 12)
WATCHED_SECONDS = soak(60, 6)
LOOKS = 4
"""On a machine that is busy with other things, what is left of it may be less than the API bears: so many tries."""
USED = 0.9
THROTTLED = 0.05
ASKED_FOR_SECONDS = 2
UNLIMITED = FaultScript()


def limited(effect: Effect) -> FaultScript:
    return FaultScript(rules=(Rule(effect, Match(operations=("create_items",))),))


async def watched(run: FaultRun, used: Callable[[Span], float], limit: float) -> Span:
    """Look, after the warm-up, until enough of the limit is used and few enough are turned away; the last look."""
    await run.span(WARM_UP_SECONDS)
    for _ in range(LOOKS):
        span = await run.span(WATCHED_SECONDS)
        if used(span) >= USED * limit and span.throttled_share <= THROTTLED:
            break
    # What is left has shown what it was for.
    await run.api.play(UNLIMITED)
    return span


async def test_of_a_limit_of_requests_a_second_nine_tenths_are_used_and_few_are_turned_away(
    fault_run: MakeRun,
) -> None:
    per_second = 200
    # What a tenth of a second allows may come at once, as where an API counts by windows.
    script = limited(RateThrottle(requests_per_second=per_second, burst=20))
    # An event a request, and more of them than can go in the time that is watched.
    async with fault_run(script, latency_seconds=0.02, settings={"BATCH__MAX_ITEMS": "1"}) as run:
        conversations = named("many", 400)
        turns = math.ceil(per_second * (WARM_UP_SECONDS + LOOKS * WATCHED_SECONDS) / len(conversations))
        await run.publish(messages(conversations, turns))
        await run.start()
        span = await watched(run, lambda span: span.goodput, per_second)
        ended = await run.end(
            f"limit of {per_second} requests/s, untold",
            goodput=f"{span.goodput:.0f} requests/s",
            turned_away=f"{span.throttled_share:.1%}",
        )
        ended.assert_sound()
        assert not ended.letters
        assert span.goodput >= USED * per_second
        assert span.throttled_share <= THROTTLED


async def test_of_a_limit_of_requests_in_flight_nine_tenths_are_used_and_few_are_turned_away(
    fault_run: MakeRun,
) -> None:
    in_flight, latency = 32, 0.4
    script = limited(ConcurrencyThrottle(in_flight=in_flight))
    async with fault_run(script, latency_seconds=latency, settings={"BATCH__MAX_ITEMS": "1"}) as run:
        conversations = named("many", 400)
        turns = math.ceil(in_flight / latency * (WARM_UP_SECONDS + LOOKS * WATCHED_SECONDS) / len(conversations))
        await run.publish(messages(conversations, turns))
        await run.start()
        span = await watched(run, lambda span: span.mean_in_flight, in_flight)
        ended = await run.end(
            f"limit of {in_flight} in flight, untold",
            used=f"{span.mean_in_flight:.1f} in flight",
            turned_away=f"{span.throttled_share:.1%}",
        )
        ended.assert_sound()
        assert not ended.letters
        assert span.mean_in_flight >= USED * in_flight
        assert span.throttled_share <= THROTTLED


async def test_when_the_api_names_a_time_nobody_asks_it_before(fault_run: MakeRun) -> None:
    def refusal(header: str, value: str) -> FaultScript:
        told = Status(status=429, code="rate_limit_exceeded", headers={header: value})
        return FaultScript(rules=(Rule(told, Match(operations=("create_items",)), When(first=1)),))

    async with fault_run() as run:
        await run.start()
        endless = messages(named("told", 100), turns=10_000)
        told_at: dict[str, float] = {}
        async with run.publishing() as publisher:
            await publisher.steadily(itertools.islice(endless, 100), per_second=100)
            for form in ("milliseconds", "seconds", "a date"):
                # A date has no fractions: it may name a time up to a second earlier.
                date = email.utils.formatdate(time.time() + ASKED_FOR_SECONDS + 1, usegmt=True)
                script = {
                    "milliseconds": refusal("retry-after-ms", str(1000 * ASKED_FOR_SECONDS)),
                    "seconds": refusal("retry-after", str(ASKED_FOR_SECONDS)),
                    "a date": refusal("retry-after", date),
                }[form]
                told_at[form] = await run.api.play(script)
                await publisher.steadily(itertools.islice(endless, 100 * (ASKED_FOR_SECONDS + 2)), per_second=100)

        def gap_seconds(ended: Ended, began: float, over: float) -> float:
            """The longest time without an item stored."""
            times = [began, *sorted({arrival.at for arrival in ended.arrivals if began < arrival.at < over})]
            return max(later - earlier for earlier, later in itertools.pairwise(times))

        def quiet_seconds(ended: Ended, form: str) -> float:
            """The longest time without an item stored, from when this form was used."""
            return gap_seconds(ended, told_at[form], told_at[form] + 6)

        def calm_seconds(ended: Ended) -> float:
            """The same before anything was asked for: what this machine needs anyway."""
            return gap_seconds(ended, min(run.published_at.values()), min(told_at.values()))

        ended = await run.end(
            f"Retry-After: {ASKED_FOR_SECONDS} s, in milliseconds, in seconds, as a date",
            nothing_sent_for=lambda ended: ", ".join(f"{quiet_seconds(ended, form):.1f} s" for form in told_at),
        )
        ended.assert_sound()
        assert not ended.letters
        for form in told_at:
            assert ASKED_FOR_SECONDS - 0.2 <= quiet_seconds(ended, form) <= ASKED_FOR_SECONDS + 2 + calm_seconds(ended)
