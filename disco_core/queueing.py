"""The race when the device serves one request at a time: what waits in its queue, and what never leaves it.

`simulate` gives every request a device of its own, so when requests come does not matter there. Here one device
serves them all, first come, first served, and answers one to the end before it begins the next; the server stays a
service that somebody else keeps large enough, its TTFT drawn from F as before. Plans are made as if the device were
free.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats
from disco_core.dispatch import NEVER, DispatchPlan
from disco_core.latency import DeviceProfile, ServerProfile
from disco_core.simulate import Result, drawn, simulate
from disco_core.workload import Workload


@dataclass(frozen=True, eq=False, kw_only=True)
class QueueResult(Result):
    """A `Result` with the queue of the one device; arrays have one entry per request, shape (n,).

    device_start_s  seconds from the request until the device began with it, inf where it never did
    waited_s        seconds in the device's queue, until the device began or the server answered; 0 for a request that
                    never was in it
    dropped         whether the server answered first while the request was in the queue, bool: not started, not paid
    busy_s          seconds the device worked for the request: to the end of its answer, or until it was cancelled
    """

    device_start_s: Floats
    waited_s: Floats
    dropped: NDArray[np.bool_]
    busy_s: Floats

    @property
    def device_busy(self) -> float:
        """Share of the time that the device works, from the first request until the last one came or it was done."""
        begun = self.device_started
        done_s = (self.load.arrival_s + self.device_start_s + self.busy_s)[begun]
        span_s = np.append(done_s, self.load.arrival_s).max() - self.load.arrival_s.min()
        return float(self.busy_s.sum() / span_s) if span_s > 0 else float("nan")

    def summary(self) -> dict[str, float]:
        """As that of a `Result`; also the share of time the device works, mean wait in s, share of dropped starts."""
        more = {"device_busy": self.device_busy, "mean_wait_s": float(self.waited_s.mean())}
        return super().summary() | more | {"dropped": float(self.dropped.mean())}


def alone_s(load: Workload, device: DeviceProfile) -> Floats:
    """Seconds the device works for each request that it answers alone, shape (n,); the first token ends the prefill.

    Their mean times the requests per second is the device's offered load rho, were every request its own.

    >>> load = Workload([0.0, 9.0], [20, 40], [1, 15])
    >>> alone_s(load, DeviceProfile(prefill_rate=50.0, decode_rate=14.0)).tolist()
    [0.4, 1.8]
    """
    checks.kind(load, Workload, "load"), checks.kind(device, DeviceProfile, "device")
    return device.ttft(load.prompt_tokens) + (load.output_tokens - 1) / device.decode_rate


def simulate_queue(
    load: Workload,
    plan: DispatchPlan,
    server: ServerProfile,
    device: DeviceProfile,
    *,
    rng: np.random.Generator | None = None,
    ttft_s: ArrayLike | None = None,
    delays_s: ArrayLike | None = None,
) -> QueueResult:
    """The race of `simulate` for requests that share one device, which serves one at a time in order of asking.

    The device is asked w seconds after a request came, iff the server has not answered by then, and begins once it is
    free. A start that is still in the queue when the server answers is dropped and not paid; one that has begun is
    paid, and cancelled at once if the server answers first. If the device answers first, it is taken until its last
    token. TTFT counts from the request's arrival. Of requests that ask at one moment the one that came first goes
    first. Times are compared as floats: a tie is one only if its sums are equal. Answers do not move from end to end.

    rng, ttft_s, delays_s   as in `simulate`, and its errors; generators of equal seed meet equal draws in both
    """
    own_s, delay_s = drawn(load, plan, server, device, rng, ttft_s, delays_s)
    (server_ttft, device_ttft), (server_delay, device_delay) = own_s, delay_s
    answered = server_delay + server_ttft
    decoding = (load.output_tokens - 1) / device.decode_rate
    arrival = load.arrival_s - load.arrival_s.min()  # seconds since 1970 would leave few digits for the race
    asked_at = arrival + device_delay
    asked = device_delay < answered
    turn = np.lexsort((arrival, asked_at, ~asked))[: asked.sum()]  # the latter keys count first
    columns = (arrival, device_delay, server_delay, answered, device_ttft, decoding)
    start_s, busy_s = np.full(len(load), NEVER), np.zeros(len(load))
    start_s[turn], busy_s[turn] = _serve(*(column[turn].tolist() for column in columns))
    # with the queue's starts in place of the plan's it is the same race, compared with the same floats
    race = simulate(load, plan, server, device, ttft_s=np.stack(own_s), delays_s=np.stack([server_delay, start_s]))
    waited_s = np.where(asked, np.minimum(start_s, answered) - device_delay, 0.0)
    dropped = asked & np.isinf(start_s)
    return QueueResult(**vars(race), device_start_s=start_s, waited_s=waited_s, dropped=dropped, busy_s=busy_s)


def _serve(
    arrival: list[float],
    delay: list[float],
    server_delay: list[float],
    answered: list[float],
    prefill: list[float],
    decoding: list[float],
) -> tuple[list[float], list[float]]:
    """When the device begins with each request, inf for never, and how long it works for it; in the order of turns.

    All but the arrival in seconds from the request, as the race itself compares them.
    """
    starts, works = [], []
    free = 0.0  # when the device is done with all before
    for came, wait, asks_server, answer, reads, writes in zip(
        arrival, delay, server_delay, answered, prefill, decoding, strict=True
    ):
        start = max(wait, free - came)
        if start >= answer:
            starts.append(NEVER)
            works.append(0.0)
            continue
        first = start + reads
        # a server that would answer at the moment it is asked is not asked if the device has answered by then
        done = first + writes if first < answer or first <= asks_server else answer
        free = came + done
        starts.append(start)
        works.append(done - start)
    return starts, works
