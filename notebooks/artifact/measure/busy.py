"""How busy this machine is with other programs, which would distort what is timed on it.

Three signs are read around every piece of a measurement: the CPU time of other processes, the lag of the event loop
during the piece, and the time that a fixed piece of work takes before and after it. The last two are compared with
their medians within the run, so a machine that is slower by a constant factor does not count as disturbed.
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median

import psutil

SPARE = 0.125  # of the cores needed, the share that others may take
MOST_LAG_S, MOST_LAGS = 0.05, 5  # of the event loop; the larger of this time and this multiple of the median lag
MOST_SLOWER = 1.5  # times the median time of the fixed piece of work
WINDOW_S = 1.0  # CPU times come in ticks of 10 ms, so a shorter piece is judged with the time before it
_BLOCK = bytes(1 << 22)


@dataclass
class Reading:
    """The signs of one piece: cores that others used, the loop's largest lag, seconds of the fixed work."""

    others_cores: float = 0.0
    lag_s: float = 0.0
    work_s: float = 0.0
    disturbed: str = ""


@dataclass
class Monitor:
    """Reads the signs around pieces that are measured one after the other; the work needs `needed` cores."""

    needed: int = 2
    cores: int = field(default_factory=lambda: psutil.cpu_count(logical=False) or psutil.cpu_count() or 1)
    _times: deque[tuple[float, float]] = field(default_factory=deque, init=False)
    _work: list[float] = field(default_factory=list, init=False)
    _lags: list[float] = field(default_factory=list, init=False)
    _lag_s: float = field(default=0.0, init=False)

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """Watch one piece; the reading is complete when the block ends."""
        result = Reading()
        if not self._times:
            self._times.append(others_cpu_s())
            self._work.append(fixed_work_s())
        before, self._lag_s = self._work[-1], 0.0
        started = time.monotonic()
        yield result
        self._work.append(fixed_work_s())
        self._times.append(others_cpu_s())
        result.others_cores = self._others(started)
        result.lag_s, result.work_s = self._lag_s, (before + self._work[-1]) / 2
        self._lags.append(result.lag_s)
        result.disturbed = self._reason(result)

    async def watch(self) -> None:
        """Follow the running event loop's lag until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.01
            await asyncio.sleep(0.01)
            self._lag_s = max(self._lag_s, loop.time() - due)

    def _others(self, started: float) -> float:
        """Cores that others used since the piece started, or over the last WINDOW_S if it was shorter."""
        at, total = self._times[-1]
        since = min(started, at - WINDOW_S)
        while len(self._times) > 2 and self._times[1][0] <= since:
            self._times.popleft()
        first, before = self._times[0]
        return max(0.0, total - before) / max(at - first, 1e-3)

    def _reason(self, reading: Reading) -> str:
        """Why the piece is disturbed; "" if it is not."""
        if reading.others_cores > max(self.cores - self.needed, 0) + SPARE * self.needed:
            return f"other programs took {reading.others_cores:.1f} of {self.cores} cores"
        if reading.lag_s > max(MOST_LAG_S, MOST_LAGS * median(self._lags)):
            return f"the event loop was late by {1000 * reading.lag_s:.0f} ms"
        slower = reading.work_s / median(self._work)
        if slower > MOST_SLOWER:
            return f"a fixed piece of work took {slower:.1f} times its median time"
        return ""


def others_cpu_s() -> tuple[float, float]:
    """Now, and the CPU seconds of all other processes since the machine started, including those of its host."""
    total = psutil.cpu_times()
    busy = sum(getattr(total, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    ours = 0.0
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            ours += times.user + times.system
    return time.monotonic(), busy - ours


def fixed_work_s() -> float:
    """Seconds that a fixed piece of work takes, some milliseconds on an idle machine."""
    start = time.perf_counter()
    for _ in range(5):
        hashlib.sha256(_BLOCK).digest()
    return time.perf_counter() - start
