"""How far a notebook is: on a terminal a line that is kept up to date, or where make runs several at a time a line a
step; in a log one at its start and one at its end.

How long it may take is what it took last, on this machine or, before it ran here, on the reference machine.
"""

import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import BUILD, ROOT, write_atomic

REFERENCE = ROOT / "notebooks" / "seconds.json"
_INJECTED = "injected-parameters"  # Papermill's own cell


class Progress:
    """Told of every cell of a notebook as it starts; `line` says where it is, on stderr at once if `tells`."""

    def __init__(self, stem: str, cells: int, expected_s: float | None, *, tells: bool = False) -> None:
        self.stem, self.cells, self.expected_s, self.tells = stem, cells, expected_s, tells
        self.number, self.section, self.text = 0, "", ""
        self._start = monotonic()

    def on_cell(self, cell: Mapping[str, Any], cell_index: int) -> None:
        """What nbclient calls at the start of every cell; the words before a code cell tell what it does."""
        if cell["cell_type"] == "code" and _INJECTED not in cell["metadata"].get("tags", []):
            self.number += 1
            if self.tells:
                print(self.line(_columns()), file=sys.stderr)
        if cell["cell_type"] == "markdown":
            text = ""
            for line in map(str.strip, cell["source"].splitlines()):
                if line.startswith("## "):
                    self.section, text = line[3:], ""
                elif not line.startswith("#"):
                    text = text or re.sub("[*`]", "", line)
            self.text = text

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return monotonic() - self._start

    def line(self, columns: int) -> str:
        """Such as `dispatch  3 of 12: Compute, "First the mean TTFT over budgets."  0:12 of about 0:40`."""
        head = f"{self.stem}  {self.number} of {self.cells}" + (f": {self.section}" if self.section else "")
        tail = f"  {_clock(self.elapsed_s)}" + (f" of about {_clock(self.expected_s)}" if self.expected_s else "")
        room = columns - len(head) - len(tail) - len(', ""')
        if self.text and room > 10:
            head += f', "{self.text if len(self.text) <= room else self.text[: room - 1] + "…"}"'
        return (head + tail)[:columns]


@contextmanager
def shown(stem: str, cells: int, key: str) -> Iterator[Progress]:
    """Show how far a notebook is while the block runs, and remember what it took if nothing is raised."""
    terminal, beside = sys.stderr.isatty(), "jobserver" in os.environ.get("MAKEFLAGS", "")
    progress = Progress(stem, cells, expected_s(key), tells=terminal and beside)
    about = f", about {progress.expected_s:.0f} s" if progress.expected_s else ""
    if beside or not terminal:
        print(f"{stem}: {cells} cells{about}", file=sys.stderr)
        yield progress
    else:
        with _kept_up_to_date(progress):
            yield progress
    print(f"{stem}: {cells} cells in {progress.elapsed_s:.0f} s", file=sys.stderr)
    _remember(key, progress.elapsed_s)


def expected_s(key: str) -> float | None:
    """What a notebook of these parameters took last, here or on the reference machine, in seconds; None: unknown."""
    found = _read(REFERENCE) | _read(_seconds())
    return found.get(key)


@contextmanager
def _kept_up_to_date(progress: Progress) -> Iterator[None]:
    over, terminal = threading.Event(), sys.stderr

    def tell() -> None:
        while not over.is_set():
            print(f"\r{progress.line(_columns() - 1)}\x1b[K", end="", file=terminal, flush=True)
            over.wait(0.5)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        print("\r\x1b[K", end="", file=terminal, flush=True)


def _columns() -> int:
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _seconds() -> Path:
    return BUILD / "seconds.json"


def _remember(key: str, seconds: float) -> None:
    known = _read(_seconds()) | {key: round(seconds, 1)}
    with suppress(ArtifactError):  # nothing is lost but a guess
        write_atomic(_seconds(), json.dumps(known, indent=1, sort_keys=True) + "\n")


def _read(path: Path) -> dict[str, float]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        return {str(key): float(value) for key, value in json.loads(path.read_text()).items()}
    return {}
