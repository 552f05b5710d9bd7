"""Progress of a measurement, and Ctrl-C: the first one keeps what there is, the second ends it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm import tqdm

SAME_S = 0.5  # a second signal so soon is the same Ctrl-C, which may come from the terminal and from a parent


class Progress:
    """A bar for the step that runs, and whether it was interrupted.

    interrupted   set by the first Ctrl-C; a step then ends as soon as it can and keeps what it has
    """

    def __init__(self, quiet: bool = False) -> None:
        self.interrupted, self._quiet = False, quiet
        self._bar: Any = None
        self._wake: Callable[[], object] = lambda: None

    def say(self, text: str) -> None:
        """One line, above the bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def start(self, total: int, name: str, unit: str) -> None:
        """A bar for so many units."""
        options: dict[str, Any] = {"desc": name, "unit": unit, "mininterval": 1.0, "ncols": 80}
        self._bar = tqdm(total=total, disable=self._quiet, **options)

    def update(self) -> None:
        """One more unit is done."""
        if self._bar is not None:
            self._bar.update()

    def stop(self) -> None:
        """The step has ended."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def on_interrupt(self, wake: Callable[[], object]) -> None:
        """Call this, from the main thread, at the first Ctrl-C; at once if that has been."""
        self._wake = wake
        if self.interrupted:
            wake()

    def interrupt(self) -> None:
        """What the first Ctrl-C does."""
        self.interrupted = True
        with suppress(RuntimeError):  # the loop that it wakes has just been closed
            self._wake()

    @contextmanager
    def catching(self) -> Iterator["Progress"]:
        """While the block runs, the first Ctrl-C interrupts and the second raises KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before, first_s = signal.getsignal(signal.SIGINT), list[float]()

        def interrupted(*_: object) -> None:
            if first_s:
                if time.monotonic() - first_s[0] > SAME_S:
                    raise KeyboardInterrupt
                return
            first_s.append(time.monotonic())
            os.write(
                2, b"\ninterrupted: what there is is kept and reported; Ctrl-C again ends it\n"
            )  # print may hold a lock
            self.interrupt()

        signal.signal(signal.SIGINT, interrupted)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)
