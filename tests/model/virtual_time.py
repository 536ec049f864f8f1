"""An event loop in virtual time whose tasks belong to lives, and a life can be ended or stopped at any step.

Time stands still while anything can run and jumps to the next timer when nothing can, so a minute takes a few
milliseconds and a run depends on nothing but its seed. What a process does runs in a context that carries its
`Life`; every callback of that context is a step. A life that is ended takes no step more: nothing is cancelled,
no `finally` gets to speak, as it is with ``kill -9``. One that is stopped takes its steps later, all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("LIFE", default=None)


class Life:
    """One process as the loop sees it."""

    def __init__(self, name: str, loop: VirtualLoop) -> None:
        self.name = name
        self.loop = loop
        self.steps = 0
        self.ended = False
        self.stopped = False
        self.at_step: dict[int, Callable[[], None]] = {}
        """What happens to it before its step of this number."""
        self._later: deque[asyncio.Handle] = deque()
        self._context = contextvars.copy_context()
        self._context.run(LIFE.set, self)

    def create_task(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run ``work`` as part of this life."""
        return self.loop.create_task(work, name=f"{self.name}: {name}", context=self._context.copy())

    def do(self, what: Callable[[], object]) -> None:
        """Let something happen in this life as its next step."""
        self.loop.call_soon(what, context=self._context.copy())

    def end(self) -> None:
        self.ended = True
        self._later.clear()

    def stop(self) -> None:
        self.stopped = True

    def wake(self) -> None:
        self.stopped = False
        self.loop.run_next(self._later)
        self._later = deque()

    def may_run(self, handle: asyncio.Handle) -> bool:
        """Whether this step is taken now."""
        if self.ended:
            return False
        if self.stopped:
            self._later.append(handle)
            return False
        happens = self.at_step.pop(self.steps, None)
        if happens is not None:
            happens()
            return self.may_run(handle)
        self.steps += 1
        return True


class NothingHappensError(Exception):
    """Everything waits and no timer is set."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without a clock and without sockets."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._tasks: list[asyncio.Task[Any]] = []
        """All of them, so that none of an ended life is tidied away before the end."""
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **options)
        self._tasks.append(task)
        return task

    def time(self) -> float:
        return self._now

    def run_next(self, handles: deque[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def _run_once(self) -> None:
        scheduled = self._scheduled
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)
        if not self._ready:
            if not scheduled:
                raise NothingHappensError
            self._now = max(self._now, scheduled[0].when())
        while scheduled and scheduled[0].when() <= self._now:
            self._ready.append(heapq.heappop(scheduled))
        take = self._ready.popleft
        for _ in range(len(self._ready)):
            handle = take()
            if handle._cancelled:
                continue
            life = handle._context.get(LIFE)  # type: ignore[attr-defined]
            if life is None or life.may_run(handle):
                handle._run()

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """What the ended leave behind is not tidied up."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def close(self) -> None:
        """Put away what still waits without a word from it."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(RuntimeError):
                    task.get_coro().close()
        self._tasks.clear()
        self._ready.clear()
        self._scheduled.clear()
        super().close()
