"""A virtual clock: an event loop whose time jumps to the next timer, so that hours of streaming take milliseconds."""

import asyncio
import math
import selectors


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything is ready, then jumps exactly to the next timer, instant by instant."""

    def __init__(self):
        super().__init__(selectors.SelectSelector())
        self._instant = 0.0
        select = self._selector.select
        self._selector.select = lambda timeout: select(0) or self._jump(timeout) or []

    def time(self):
        return self._instant

    def _jump(self, timeout):
        if timeout is None:
            raise RuntimeError("nothing is left to happen: the stream waits forever")
        if timeout > 0:
            self._instant = self._scheduled[0].when()
            self._clock_resolution = math.ulp(self._instant)  # a timer one rounding later is another instant


def run(coroutine):
    """Run under a virtual clock that starts at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
