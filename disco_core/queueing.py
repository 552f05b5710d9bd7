"""The race when all requests share one device, which serves one at a time.

`simulate` gives every request a device to itself, so arrival times do not matter there. Here one device serves all
requests, first come, first served, and finishes an answer before it begins the next. The server is a service with
enough capacity: its TTFT is drawn from F as before. Plans are made as if the device were free.
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
                    was never queued
    dropped         whether the server answered while the request was queued, bool: not started, not charged
    busy_s          seconds the device worked for the request: to the end of its answer, or until it was cancelled
    """

    device_start_s: Floats
    waited_s: Floats
    dropped: NDArray[np.bool_]
    busy_s: Floats

    @property
    def device_busy(self) -> float:
        """Share of time the device works, from the first arrival to the last arrival or the end of its work."""
        begun = self.device_started
        done_s = (self.load.arrival_s + self.device_start_s + self.busy_s)[begun]
        span_s = np.append(done_s, self.load.arrival_s).max() - self.load.arrival_s.min()
        return float(self.busy_s.sum() / span_s) if span_s > 0 else float("nan")

    def summary(self) -> dict[str, float]:
        """The summary of a `Result`, the share of time the device works, mean wait in s, share of dropped starts."""
        more = {"device_busy": self.device_busy, "mean_wait_s": float(self.waited_s.mean())}
        return super().summary() | more | {"dropped": float(self.dropped.mean())}


def alone_s(load: Workload, device: DeviceProfile) -> Floats:
    """Seconds the device works for each request that it answers alone, shape (n,); the first token ends the prefill.

    Their mean times the requests per second is the offered load rho if the device answers every request.

    >>> load = Workload([0.0, 9.0], [20, 40], [1, 15])
    >>> alone_s(load, DeviceProfile(prefill_rate=50.0, decode_rate=14.0)).tolist()
    [0.4, 1.8]
    """
    checks.instance_of(load, Workload, "load"), checks.instance_of(device, DeviceProfile, "device")
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
    """The race of `simulate` for requests that share one device, which serves one at a time in queue order.

    A request joins the device's queue w seconds after its arrival, unless the server has answered by then, and starts
    once the device is free. If the server answers while it is queued, it is dropped and not charged; if the server
    answers after it has started, it is charged and cancelled at once. If the device answers first, it is busy until
    its last token. TTFT counts from the arrival. Of requests that join the queue at the same moment the earlier
    arrival goes first. Times are compared as floats: only equal sums tie. Answers are not handed over.

    rng, ttft_s, delays_s   as in `simulate`, and its errors; generators with equal seeds give both the same draws
    """
    times_s, delay_s = drawn(load, plan, server, device, rng, ttft_s, delays_s)
    (server_ttft, device_ttft), (server_delay, device_delay) = times_s, delay_s
    server_first = server_delay + server_ttft
    decode_s = (load.output_tokens - 1) / device.decode_rate
    arrival = load.arrival_s - load.arrival_s.min()  # seconds since 1970 would leave few digits for the race
    queued_at = arrival + device_delay
    queued = device_delay < server_first
    order = np.lexsort((arrival, queued_at, ~queued))[: queued.sum()]  # the last key is the primary one
    columns = (arrival, device_delay, server_delay, server_first, device_ttft, decode_s)
    start_s, busy_s = np.full(len(load), NEVER), np.zeros(len(load))
    start_s[order], busy_s[order] = _serve(*(column[order].tolist() for column in columns))
    # the same race, with the starts that the queue allows in place of the plan's delays
    race = simulate(load, plan, server, device, ttft_s=np.stack(times_s), delays_s=np.stack([server_delay, start_s]))
    waited_s = np.where(queued, np.minimum(start_s, server_first) - device_delay, 0.0)
    dropped = queued & np.isinf(start_s)
    return QueueResult(**vars(race), device_start_s=start_s, waited_s=waited_s, dropped=dropped, busy_s=busy_s)


def _serve(
    arrivals: list[float],
    device_delays: list[float],
    server_delays: list[float],
    server_firsts: list[float],
    prefills: list[float],
    decodes: list[float],
) -> tuple[list[float], list[float]]:
    """When the device starts each request, inf for never, and how long it works for it; requests in queue order.

    All but the arrivals are seconds from the request, as in the race itself.
    """
    starts, busy = [], []
    free = 0.0  # when the device has finished all earlier requests
    for arrival, delay, server_delay, server_first, prefill, decode in zip(
        arrivals, device_delays, server_delays, server_firsts, prefills, decodes, strict=True
    ):
        start = max(delay, free - arrival)
        if start >= server_first:
            starts.append(NEVER)
            busy.append(0.0)
            continue
        first = start + prefill
        # a server that would answer at the moment it starts does not start if the device has answered by then
        done = first + decode if first < server_first or first <= server_delay else server_first
        free = arrival + done
        starts.append(start)
        busy.append(done - start)
    return starts, busy
