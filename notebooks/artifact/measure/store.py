"""Measurements of this machine: taken piece by piece, stored by content, read with a check.

`measured` gives a folder of csv files and a manifest. It measures only where no stored folder has the same settings,
code, model, server and machine. Every piece is written down as it comes, so an interrupted measurement goes on where
it stopped; a piece that something else disturbed is measured again, at most twice, and marked if it stays disturbed.
`read` gives what such a folder holds.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from artifact.data import model
from artifact.errors import ArtifactError
from artifact.files import BUILD, ROOT, write_together
from artifact.measure.code import code_digest
from artifact.measure.machine import machine
from artifact.measure.pieces import Run, Tables, plain

FORMAT = 1
STORED = BUILD / "stored"
TEXTS = {"text", "before", "after"}  # columns that are text whatever they say, be it nothing or "NA"
_VERSIONS = ("llama-cpp-python", "xllamacpp", "numpy")


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
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=plain).encode()).hexdigest()
    folder = STORED / f"{name}-{digest[:16]}"
    with _only_one():
        if not _complete(folder):
            _take(about, measure, folder, cores)
        _copy(folder, ROOT / out)
    return ROOT / out


def _complete(folder: Path) -> bool:
    try:
        return not _wrong(folder, json.loads((folder / "manifest.json").read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _take(about: dict[str, Any], measure: Callable[[Run], Tables], folder: Path, cores: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error.strerror}") from None
    settings = json.loads(json.dumps(about["settings"], default=plain))
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
    manifest = json.dumps(about, indent=1, ensure_ascii=False, default=plain) + "\n"
    files["manifest.json"] = manifest.encode()  # last: it says that all is there
    write_together(folder, files)


def _copy(folder: Path, out: Path) -> None:
    """Put what is stored into `out`, unless it is there."""
    manifest = (folder / "manifest.json").read_bytes()
    with suppress(OSError):
        if (out / "manifest.json").read_bytes() == manifest and _complete(out):
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


def _shown(folder: Path) -> Path:
    return folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
