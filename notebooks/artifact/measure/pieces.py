"""A measurement in progress: taken piece by piece, each written down as it comes.

An interrupted measurement goes on where it stopped; a piece that something else disturbed is measured again, at most
twice, and marked if it stays disturbed.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from artifact.errors import ArtifactError
from artifact.measure.busy import WINDOW_S, Monitor, Reading
from disco_core.errors import EndpointError

Tables = dict[str, pd.DataFrame]
REPEATS = 2  # how often a disturbed piece is measured again
PATIENCE = 3  # pieces in a row that stayed disturbed, after which none is repeated until one is not
ALLOWED = 0.05  # share of the pieces of a kind that may stay disturbed while claims are still judged; none of FEW
FEW = 10  # pieces of a kind


@dataclass
class Run:
    """One measurement in progress: its settings, and the pieces it has.

    cores   that the measured work takes; 0 where time is not what is measured, so that nothing disturbs it
    """

    name: str
    settings: SimpleNamespace
    journal: Path
    cores: int = 2

    def __post_init__(self) -> None:
        self.monitor = Monitor(self.cores)
        there = _pieces(self.journal)
        # what stayed disturbed the last time is worth another try
        self._known = {key: one for key, one in there.items() if not one["busy"]["disturbed"]}
        self.pieces: dict[str, dict[str, Any]] = {}
        self._stayed = 0
        self._bar: Any = None

    def expect(self, pieces: int, unit: str = "piece") -> None:
        """Begin the progress bar of so many pieces."""
        self._bar = tqdm(total=pieces, desc=self.name, unit=unit, mininterval=1.0, ncols=80)

    async def piece(self, key: str, take: Callable[[], Awaitable[Any]], *, timed: bool = True) -> Any:
        """What `take` gives, lists and dicts of plain values; measured unless this piece is there already.

        timed   whether its time is what is measured, so that other programs disturb it
        """
        for attempt in range(1 + REPEATS):
            if self._there(key):
                break
            # what disturbed the last try, or made the loop late until now, is not this one's
            await asyncio.sleep(WINDOW_S if attempt else 0)
            for _ in range(3):
                await asyncio.sleep(0)
            try:
                with self.monitor.reading() as reading:
                    rows = await take()
            except EndpointError as error:  # on a busy machine an endpoint may miss its deadline
                if attempt == REPEATS:
                    raise
                self._say(f"{self.name}, {key}: {error}; measured again")
                continue
            self._keep(key, attempt, rows, reading, timed=timed)
        return self.pieces[key]["rows"]

    def piece_now(self, key: str, take: Callable[[], Any]) -> Any:
        """`piece` for a plain function."""
        for attempt in range(1 + REPEATS):
            if self._there(key):
                break
            time.sleep(WINDOW_S if attempt else 0)
            with self.monitor.reading() as reading:
                rows = take()
            self._keep(key, attempt, rows, reading)
        return self.pieces[key]["rows"]

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def busy(self) -> dict[str, Any]:
        """How busy the machine was, over all pieces: how many were repeated, stayed disturbed, and what was seen."""
        every = list(self.pieces.values())
        seen = {
            sign: {
                name: float(np.quantile([one["busy"][sign] for one in every], q).round(4))
                for name, q in (("median", 0.5), ("p95", 0.95), ("most", 1.0))
            }
            for sign in ("others_cores", "lag_s", "work_s")
        }
        marked = [key for key, one in self.pieces.items() if one["busy"]["disturbed"]]
        counts = {
            "pieces": len(every),
            "repeated": sum(one["attempt"] > 0 for one in every),
            "disturbed": len(marked),
        }
        return counts | seen | {"marked": marked}

    def disturbed(self) -> str:
        """Why claims on this measurement are not judged; nothing if they are.

        Pieces are counted by their kind, which is their name without numbers: a claim rests on those of one kind.
        """
        kinds: dict[str, list[str]] = {}
        for key, one in self.pieces.items():
            kinds.setdefault(re.sub(r"\d+", "", key), []).append(one["busy"]["disturbed"])
        for every in kinds.values():
            marked = list(filter(None, every))
            if len(marked) > (max(1, ALLOWED * len(every)) if len(every) >= FEW else 0):
                of = f"{len(marked)} of {len(every)} pieces of one kind of {self.name}"
                return f"the machine was busy in {of}; in one, {marked[0]}"
        return ""

    def _there(self, key: str) -> bool:
        """Whether a piece is there, from now or from an interrupted run."""
        if key in self._known and key not in self.pieces:
            self.pieces[key] = self._known[key]
            if self._bar is not None:
                self._bar.update()
        return key in self.pieces

    def _keep(self, key: str, attempt: int, rows: Any, reading: Reading, *, timed: bool = True) -> None:
        """Write a piece down, unless it was disturbed and is worth another try."""
        timed = timed and self.cores > 0
        reading.disturbed = reading.disturbed if timed else ""
        if reading.disturbed:
            again = attempt < REPEATS and self._stayed < PATIENCE
            self._say(f"{self.name}, {key}: {reading.disturbed}; {'measured again' if again else 'marked'}")
            if again:
                return
        self._stayed = self._stayed + 1 if reading.disturbed else 0 if timed else self._stayed
        if self._stayed == PATIENCE and reading.disturbed:
            self._say(f"{self.name}: the machine stays busy, so disturbed pieces are marked and not repeated")
        line = json.dumps({"piece": key, "attempt": attempt, "rows": rows, "busy": vars(reading)}, default=plain)
        try:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}")  # the break comes first, so that a line that was cut ends before the next
        except OSError as error:
            raise ArtifactError(f"cannot write {self.journal}: {error.strerror}") from None
        self.pieces[key] = json.loads(line)
        if self._bar is not None:
            self._bar.update()

    def _say(self, text: str) -> None:
        if self._stayed <= PATIENCE:
            tqdm.write(text, file=sys.stderr)


def plain(value: Any) -> Any:
    """What json does not know: NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"not a plain value: {value!r:.80}")


def _pieces(journal: Path) -> dict[str, dict[str, Any]]:
    found = {}
    with suppress(OSError):
        for line in journal.read_text(encoding="utf-8").split("\n"):
            with suppress(ValueError, KeyError, TypeError):  # a line that was cut is no piece
                one = json.loads(line)
                found[str(one["piece"])] = {"rows": one["rows"], "busy": one["busy"], "attempt": one["attempt"]}
    return found
