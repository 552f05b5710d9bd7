"""Measurements of this machine: taken piece by piece, stored by content, read with a check.

`measured` gives a folder of csv files and a manifest. It measures only where no stored folder has the same settings,
code, model, server and machine. Every piece is written down as it comes, so an interrupted measurement goes on where
it stopped; a piece that something else disturbed is measured again, at most twice, and marked if it stays disturbed.
`read` gives what such a folder holds.
"""

import ast
import asyncio
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from artifact.data import model
from artifact.errors import ArtifactError
from artifact.files import BUILD, DATA, ROOT, write_together
from artifact.measure.busy import Monitor, Reading
from artifact.measure.machine import machine

Tables = dict[str, pd.DataFrame]
FORMAT = 1
STORED = BUILD / "stored"
REPEATS = 2  # how often a disturbed piece is measured again
PATIENCE = 3  # pieces in a row that stayed disturbed, after which none is repeated until one is not
ALLOWED = 0.05  # share of pieces that may stay disturbed while claims are still judged
TEXTS = {"text", "before", "after"}  # columns that are text whatever they say, be it nothing or "NA"
_VERSIONS = ("llama-cpp-python", "xllamacpp", "numpy")


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
        self.pieces: dict[str, dict[str, Any]] = _pieces(self.journal)
        self._stayed = 0
        self._bar: Any = None

    def expect(self, pieces: int, unit: str = "piece") -> None:
        """Begin the progress bar of so many pieces."""
        there = min(len(self.pieces), pieces)
        self._bar = tqdm(total=pieces, initial=there, desc=self.name, unit=unit, mininterval=1.0, ncols=80)

    async def piece(self, key: str, take: Callable[[], Awaitable[Any]], *, timed: bool = True) -> Any:
        """What `take` gives, lists and dicts of plain values; measured unless this piece is there already.

        timed   whether its time is what is measured, so that other programs disturb it
        """
        if key not in self.pieces:
            for attempt in self._attempts():
                for _ in range(3):
                    await asyncio.sleep(0)  # what made the loop late until now is not this piece's
                with self.monitor.reading() as reading:
                    rows = await take()
                reading.disturbed = reading.disturbed if timed else ""
                if self._accepted(key, attempt, rows, reading):
                    break
        return self.pieces[key]["rows"]

    def piece_now(self, key: str, take: Callable[[], Any]) -> Any:
        """`piece` for a plain function."""
        if key not in self.pieces:
            for attempt in self._attempts():
                with self.monitor.reading() as reading:
                    rows = take()
                if self._accepted(key, attempt, rows, reading):
                    break
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
        """Why claims on this measurement are not judged; nothing if they are."""
        marked = [one["busy"]["disturbed"] for one in self.pieces.values() if one["busy"]["disturbed"]]
        if len(marked) <= max(1, ALLOWED * len(self.pieces)):
            return ""
        return (
            f"the machine was busy in {len(marked)} of {len(self.pieces)} pieces of {self.name}; in one, {marked[0]}"
        )

    def _attempts(self) -> range:
        patient = self.cores > 0 and self._stayed < PATIENCE
        return range(1 + REPEATS if patient else 1)

    def _accepted(self, key: str, attempt: int, rows: Any, reading: Reading) -> bool:
        """Whether the piece is good enough to be kept; if so it is written down."""
        last = attempt + 1 == len(self._attempts())
        if not self.cores:
            reading.disturbed = ""
        if reading.disturbed:
            self._say(f"{self.name}, {key}: {reading.disturbed}; {'marked' if last else 'measured again'}")
            if not last:
                return False
        self._stayed = self._stayed + 1 if reading.disturbed else 0
        if self._stayed == PATIENCE:
            self._say(f"{self.name}: the machine stays busy, so disturbed pieces are marked and not repeated")
        line = json.dumps({"piece": key, "attempt": attempt, "rows": rows, "busy": vars(reading)}, default=_plain)
        try:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(
                    "\n" + line
                )  # begins with its line break, so that a line that was cut ends before the next
        except OSError as error:
            raise ArtifactError(f"cannot write {self.journal}: {error.strerror}") from None
        self.pieces[key] = json.loads(line)
        if self._bar is not None:
            self._bar.update()
        return True

    def _say(self, text: str) -> None:
        if self._stayed < PATIENCE or "stays busy" in text:
            tqdm.write(text, file=sys.stderr)


def measured(
    name: str,
    settings: Mapping[str, Any],
    measure: Callable[[Run], Tables],
    *,
    out: str | Path,
    server: Mapping[str, str] | None = None,
    cores: int = 2,
    tables: Sequence[str] = (),
) -> Path:
    """The folder `out` with the measurement `name` of these settings; taken now if it is not stored.

    measure   gives the tables from a `Run`; its module, and what that imports of this project, is the code hashed
    server    name and address of a server that is not ours
    cores     that the measured work takes; 0 where time is not what is measured
    tables    tables of `data/` that are asked or planned with
    ArtifactError where another run is measuring, or a file cannot be written.
    """
    about = {
        "format": FORMAT,
        "name": name,
        "settings": dict(settings),
        "code": code_digest(measure, tables),
        "model": {"name": model.NAME, "sha256": _sha256(model.smollm2_path())},
        "server": None if server is None else dict(server),
        "machine": machine(),
        "versions": {package: metadata.version(package) for package in _VERSIONS},
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=_plain).encode()).hexdigest()
    folder = STORED / f"{name}-{digest[:16]}"
    with _only_one():
        if not (folder / "manifest.json").exists():
            _take(about, measure, folder, cores)
        _copy(folder, ROOT / out)
    return ROOT / out


def _take(about: dict[str, Any], measure: Callable[[Run], Tables], folder: Path, cores: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error.strerror}") from None
    settings = json.loads(json.dumps(about["settings"], default=_plain))
    run = Run(about["name"], SimpleNamespace(**settings), folder / "pieces.jsonl", cores)
    try:
        found = measure(run)
    finally:
        run.close()
    files = {
        f"{name}.csv": table.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()
        for name, table in found.items()
    }
    about = about | {"date": datetime.now(UTC).date().isoformat(), "busy": run.busy(), "disturbed": run.disturbed()}
    about["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = json.dumps(about, indent=1, ensure_ascii=False, default=_plain) + "\n"
    write_together(
        folder, files | {"manifest.json": manifest.encode()}
    )  # the manifest last: it says that all is there


def _copy(folder: Path, out: Path) -> None:
    """Put what is stored into `out`, unless it is there."""
    manifest = (folder / "manifest.json").read_bytes()
    with suppress(OSError):
        if (out / "manifest.json").read_bytes() == manifest and not _wrong(out, json.loads(manifest)["files"]):
            return
    names = [*json.loads(manifest)["files"], "manifest.json"]
    write_together(out, {name: (folder / name).read_bytes() for name in names})


@dataclass(frozen=True)
class Measured:
    """What a folder of measurements holds: tables by name, settings, manifest.

    `disturbed` says why claims that rest on it are not judged; "" if they are.
    """

    folder: Path
    manifest: dict[str, Any]
    tables: Tables

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.tables[table]

    @property
    def settings(self) -> dict[str, Any]:
        """The measuring notebook's parameters."""
        return dict(self.manifest["settings"])

    @property
    def disturbed(self) -> str:
        """Why claims that rest on it are not judged; nothing if they are."""
        if self.settings.get("quick"):
            return "measured in its quick size, which is too small to judge"
        return str(self.manifest["disturbed"])


def read(measurements: str | Path, name: str) -> Measured:
    """The measurement `name` in the folder `measurements`, relative to the project's root.

    ArtifactError, in one line, where it is not there, not complete, or of another version.
    """
    folder = ROOT / measurements / name
    mend = f"take data/measured, or measure here: `make reproduce`, or the notebook measure_{name}"
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if (manifest["format"], manifest["name"]) != (FORMAT, name):
            raise ValueError(f"it is version {manifest['format']} of {manifest['name']!r}, not {FORMAT} of {name!r}")
        if wrong := _wrong(folder, manifest["files"]):
            raise ValueError(f"{', '.join(wrong)} missing or not as measured")
        tables = {Path(file).stem: _read_csv(folder / file) for file in manifest["files"]}
        return Measured(folder, dict(manifest), tables)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = (
            error.strerror if isinstance(error, OSError) else f"no {error}" if isinstance(error, KeyError) else error
        )
        raise ArtifactError(f"{_shown(folder)} does not hold the measurement {name}: {said}; {mend}") from None


def code_digest(measure: Callable[..., Any], tables: Sequence[str] = ()) -> str:
    """sha256 of the code that measures, without comments and docstrings, and of the tables it asks.

    That is the function's module, and what it imports of the scheduler, the model and the rooms that measure and
    compute; not how measurements are stored.
    """
    seen: set[str] = set()
    queue = [measure.__module__]
    total = hashlib.sha256()
    while queue:
        module = queue.pop()
        if module in seen or not _measures(module):
            continue
        seen.add(module)
        tree = ast.parse(Path(sys.modules[module].__file__ or "").read_bytes())
        queue += _imports(tree)
    for module in sorted(seen):
        tree = ast.parse(Path(sys.modules[module].__file__ or "").read_bytes())
        total.update(f"{module}\n{ast.dump(_without_docstrings(tree))}\n".encode())
    for table in tables:
        total.update((DATA / f"{table}.csv").read_bytes())
    return total.hexdigest()


def _measures(module: str) -> bool:
    ours = (
        module.startswith(("disco_core", "artifact.measure.", "artifact.analysis."))
        or module == "artifact.data.model"
    )
    return ours and module in sys.modules and module not in (__name__, "artifact.measure.busy", "disco_core")


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree


@contextmanager
def _only_one() -> Iterator[None]:
    """Hold the one lock of all measuring on this machine, since two would disturb each other."""
    path = STORED / "lock"
    try:
        STORED.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            who = file.read().strip() or "unknown"
            raise ArtifactError(f"another run is measuring (process {who}); wait for it, or stop it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _pieces(journal: Path) -> dict[str, dict[str, Any]]:
    found = {}
    with suppress(OSError):
        for line in journal.read_text(encoding="utf-8").split("\n"):
            with suppress(ValueError, KeyError, TypeError):  # a line that was cut is no piece
                one = json.loads(line)
                found[str(one["piece"])] = {"rows": one["rows"], "busy": one["busy"], "attempt": one["attempt"]}
    return found


def _wrong(folder: Path, files: Mapping[str, str]) -> list[str]:
    return [
        name for name, digest in files.items() if not (folder / name).is_file() or _sha256(folder / name) != digest
    ]


def _read_csv(path: Path) -> pd.DataFrame:
    columns = set(pd.read_csv(path, nrows=0))
    unknown = {name: [""] for name in columns - TEXTS}
    return pd.read_csv(path, keep_default_na=False, na_values=unknown, dtype=dict.fromkeys(columns & TEXTS, str))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"not a plain value: {value!r:.80}")


def _shown(folder: Path) -> Path:
    return folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
