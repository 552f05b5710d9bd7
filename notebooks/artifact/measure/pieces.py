"""A measurement in progress: taken in pieces, each written to a journal when it is complete.

An interrupted measurement continues where it stopped. A piece disturbed by another program is measured again, at most
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
PATIENCE = 3  # after so many disturbed pieces in a row none is repeated, until one is undisturbed
ALLOWED = 0.05  # share of the pieces of a kind that may stay disturbed for claims to be judged; 0 below FEW pieces
FEW = 10


@dataclass
class Run:
    """One measurement in progress: its settings and its pieces so far.

    cores   that the measured work uses; 0 if no time is measured, so that nothing disturbs it
    """

    name: str
    settings: SimpleNamespace
    journal: Path
    cores: int = 2

    def __post_init__(self) -> None:
        self.monitor = Monitor(self.cores)
        # pieces that stayed disturbed the last time are measured again
        self._stored = {key: one for key, one in _pieces(self.journal).items() if not one["busy"]["disturbed"]}
        self.pieces: dict[str, dict[str, Any]] = {}
        self._stayed = 0
        self._bar: Any = None

    def expect(self, pieces: int, unit: str = "piece") -> None:
        """Start the progress bar for so many pieces."""
        self._bar = tqdm(total=pieces, desc=self.name, unit=unit, mininterval=1.0, ncols=80)

    async def piece(self, key: str, take: Callable[[], Awaitable[Any]], *, timed: bool = True) -> Any:
        """The result of `take`, lists and dicts of plain values; measured unless this piece is stored already.

        timed   whether its time is measured, so that other programs disturb it
        """
        for attempt in range(1 + REPEATS):
            if self._restore(key):
                break
            # so that what disturbed the last try, or delayed the loop until now, does not count for this one
            await asyncio.sleep(WINDOW_S if attempt else 0)
            for _ in range(3):
                await asyncio.sleep(0)
            try:
                with self.monitor.reading() as reading:
                    rows = await take()
            except EndpointError as error:  # on a busy machine an endpoint may exceed its time limit
                if attempt == REPEATS:
                    raise
                self._print(f"{self.name}, {key}: {error}; measured again")
                continue
            self._store(key, attempt, rows, reading, timed=timed)
        return self.pieces[key]["rows"]

    def piece_now(self, key: str, take: Callable[[], Any], *, timed: bool = True) -> Any:
        """`piece` for a plain function."""
        for attempt in range(1 + REPEATS):
            if self._restore(key):
                break
            time.sleep(WINDOW_S if attempt else 0)
            with self.monitor.reading() as reading:
                rows = take()
            self._store(key, attempt, rows, reading, timed=timed)
        return self.pieces[key]["rows"]

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def busy(self) -> dict[str, Any]:
        """How busy the machine was: pieces repeated, pieces that stayed disturbed, and quantiles of each sign."""
        pieces = list(self.pieces.values())
        signs = {
            sign: {
                name: float(np.quantile([one["busy"][sign] for one in pieces], q).round(4))
                for name, q in (("median", 0.5), ("p95", 0.95), ("most", 1.0))
            }
            for sign in ("others_cores", "lag_s", "work_s")
        }
        marked = [key for key, one in self.pieces.items() if one["busy"]["disturbed"]]
        counts = {
            "pieces": len(pieces),
            "repeated": sum(one["attempt"] > 0 for one in pieces),
            "disturbed": len(marked),
        }
        return counts | signs | {"marked": marked}

    def disturbed(self) -> str:
        """Why claims on this measurement are not judged; "" if they are.

        Pieces are counted by kind, which is their name without numbers, since a claim depends on pieces of one kind.
        """
        kinds: dict[str, list[str]] = {}
        for key, one in self.pieces.items():
            kinds.setdefault(re.sub(r"\d+", "", key), []).append(one["busy"]["disturbed"])
        for reasons in kinds.values():
            marked = list(filter(None, reasons))
            if len(marked) > (max(1, ALLOWED * len(reasons)) if len(reasons) >= FEW else 0):
                pieces = f"{len(marked)} of {len(reasons)} pieces of one kind of {self.name}"
                return f"the machine was busy in {pieces}; in one, {marked[0]}"
        return ""

    def _restore(self, key: str) -> bool:
        """Whether a piece is stored, by this run or by an interrupted one."""
        if key in self._stored and key not in self.pieces:
            self.pieces[key] = self._stored[key]
            if self._bar is not None:
                self._bar.update()
        return key in self.pieces

    def _store(self, key: str, attempt: int, rows: Any, reading: Reading, *, timed: bool = True) -> None:
        """Write a piece to the journal, unless it was disturbed and is to be measured again."""
        timed = timed and self.cores > 0
        reading.disturbed = reading.disturbed if timed else ""
        if reading.disturbed:
            again = attempt < REPEATS and self._stayed < PATIENCE
            self._print(f"{self.name}, {key}: {reading.disturbed}; {'measured again' if again else 'marked'}")
            if again:
                return
        self._stayed = self._stayed + 1 if reading.disturbed else 0 if timed else self._stayed
        if self._stayed == PATIENCE and reading.disturbed:
            self._print(f"{self.name}: the machine stays busy, so disturbed pieces are marked and not repeated")
        line = json.dumps({"piece": key, "attempt": attempt, "rows": rows, "busy": vars(reading)}, default=plain)
        try:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}")  # line break first, so that an incomplete line ends before the next
        except OSError as error:
            raise ArtifactError(f"cannot write {self.journal}: {error.strerror}") from None
        self.pieces[key] = json.loads(line)
        if self._bar is not None:
            self._bar.update()

    def _print(self, text: str) -> None:
        if self._stayed <= PATIENCE:
            tqdm.write(text, file=sys.stderr)


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's, for json."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"not a plain value: {value!r:.80}")


def _pieces(journal: Path) -> dict[str, dict[str, Any]]:
    pieces = {}
    with suppress(OSError):
        for line in journal.read_text(encoding="utf-8").split("\n"):
            with suppress(ValueError, KeyError, TypeError):  # an incomplete line is no piece
                one = json.loads(line)
                pieces[str(one["piece"])] = {"rows": one["rows"], "busy": one["busy"], "attempt": one["attempt"]}
    return pieces
