"""Requests to a server, sent when they are due or one after the other, and the times of their answers.

Open loop: a request is sent when it is due, whatever still runs, as users do; its time to first token (TTFT) counts
from that moment, so that what waits in this client counts as well. A request without a first token is a failure and
stays in the record.
"""

import asyncio
import math
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from artifact.data import traces
from artifact.pair.progress import Progress
from artifact.pair.prompts import Messages
from disco_core.checks import Floats
from disco_core.endpoints.base import Endpoint, Prefix, sleep_until
from disco_core.errors import EndpointError

FAILURES = 10  # in a row, after which measuring ends
DEADLINE_S = 60.0  # without a byte, after which a request has failed


@dataclass(frozen=True)
class Answer:
    """One request: seconds are NaN and tokens 0 where there was no first token.

    arrival_s      when it was due, in seconds since the measurement began
    output_tokens  as the server billed them; otherwise the pieces of text
    gap_s          median time between its tokens; NaN with fewer than two
    failure        why it ended early, "" if it did not
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    gap_s: float
    failure: str


@dataclass
class Measured:
    """The answers, in the order in which the requests were due, and why the measurement ended early ("" if not).

    sent   requests that were sent; those cut off by an interrupt or by failures in a row have no row
    """

    answers: pd.DataFrame
    sent: int
    ended: str

    @property
    def rate(self) -> float:
        """Decode rate in tokens per second, the inverse of the median gap; NaN if there is none."""
        gap_s = self.answers["gap_s"].median()
        return float(1 / gap_s) if gap_s > 0 else math.nan


def schedule(rate: float, arrivals: str | None, n: int, limit_s: float, rng: np.random.Generator) -> Floats:
    """When up to n requests are due, ascending seconds from 0 to below the limit, at `rate` per second on average.

    arrivals   a recorded pattern, thinned to n requests and scaled in time to that rate; None: a Poisson process
    """
    if arrivals is None:
        due_s = np.cumsum(rng.exponential(1 / rate, n))
    else:
        due_s = traces.pattern(arrivals).sample(n, rng)
        due_s = due_s * ((n - 1) / rate / max(np.ptp(due_s), 1e-9))
    due_s = due_s - due_s[0]
    within: Floats = due_s[due_s < limit_s]
    return within


async def measure(
    endpoint: Endpoint,
    prompts: Sequence[tuple[Messages, int]],
    due_s: Floats | None,
    tokens: int,
    limit_s: float,
    progress: Progress,
) -> Measured:
    """Send the prompts, each with its tokens, and take the times of the answers.

    due_s     when each is due; None: each when the one before has ended
    tokens    the longest answer
    limit_s   after it no request is sent; those that run are awaited, each for up to the endpoint's deadline
    """
    session = _Session(endpoint, tokens, progress)
    progress.start(len(prompts), "server", "request")
    try:
        await session.send(prompts, due_s, limit_s)
    finally:
        progress.stop()
    frame = pd.DataFrame([asdict(one) for one in session.answers], columns=list(Answer.__annotations__))
    frame = frame.sort_values("arrival_s", kind="stable", ignore_index=True)
    return Measured(frame, session.sent, session.ended)


class _Session:
    def __init__(self, endpoint: Endpoint, tokens: int, progress: Progress) -> None:
        self.endpoint, self.tokens, self.progress = endpoint, tokens, progress
        self.answers, self.sent, self.ended = list[Answer](), 0, ""
        self._failed, self._stop = 0, asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()

    async def send(self, prompts: Sequence[tuple[Messages, int]], due_s: Floats | None, limit_s: float) -> None:
        self.progress.on_interrupt(lambda: self._loop.call_soon_threadsafe(self._interrupt))
        stop, running = asyncio.create_task(self._stop.wait()), set[asyncio.Task[Any]]()
        try:
            for k, (prompt, length) in enumerate(prompts):
                now = self._loop.time() - self._start
                due = now if due_s is None else float(due_s[k])
                if due >= limit_s or not await self._before(stop, sleep_until(self._start + due)):
                    break
                request = asyncio.create_task(self._request(prompt, length, due))
                running.add(request)
                self.sent += 1
                if due_s is None:
                    await asyncio.wait([request, stop], return_when=asyncio.FIRST_COMPLETED)
            if running:
                await self._before(stop, asyncio.wait(running))
        finally:
            for task in (*running, stop):
                task.cancel()
            await asyncio.gather(*running, stop, return_exceptions=True)
            self.progress.on_interrupt(lambda: None)

    async def _before(self, stop: "asyncio.Task[Any]", work: Coroutine[Any, Any, Any]) -> bool:
        """Whether the work has ended before the measurement is stopped."""
        task = asyncio.ensure_future(work)
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return not self._stop.is_set()

    def _interrupt(self) -> None:
        self.ended = self.ended or "interrupted"
        self._stop.set()

    async def _request(self, prompt: Messages, length: int, due: float) -> None:
        times, billed, failure = list[float](), 0, ""
        generation = self.endpoint.generate(Prefix(prompt, (), self.tokens))
        try:
            async with aclosing(generation) as tokens:
                async for token in tokens:
                    if not token.reasoning:
                        times.append(self._loop.time() - self._start)
        except EndpointError as error:
            failure = str(error)
        if usage := getattr(generation, "billed", None):
            billed = usage[1]
        failure = failure or ("" if times else f"{self.endpoint.name}: it answered without a token")
        self.answers.append(
            Answer(
                arrival_s=due,
                prompt_tokens=length,
                output_tokens=(billed or len(times)) if times else 0,
                ttft_s=times[0] - due if times else math.nan,
                gap_s=_gap(times),
                failure=failure,
            )
        )
        self._failed = 0 if times else self._failed + 1
        if self._failed == FAILURES:
            self.ended = f"{FAILURES} requests in a row failed, the last with: {failure}"
            self._stop.set()
        self.progress.update()


def _gap(times: Sequence[float]) -> float:
    """The median gap; the mean where most tokens come together, several in one packet."""
    if len(times) < 2:
        return math.nan
    median = float(np.median(np.diff(times)))
    return median if median > 0 else (times[-1] - times[0]) / (len(times) - 1)
