"""The project's folders, and atomic writing of their files."""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from artifact.errors import ArtifactError
from disco_core.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
FIGURES = ROOT / "figures"
BUILD = ROOT / "build"

# The notebooks whose exhibits the report and the index show, in order of reading, with their titles.
CHAPTERS = {
    "system": "The system",
    "summary": "The results",
    "traces": "Public traces",
    "endpoints": "One device and one server",
    "dispatch": "Dispatch",
    "migration": "Migration",
    "live": "Live streams",
    "pd_device": "P/D-Device",
    "elastic": "ElastiLM",
    "objectives": "ElastiLM's decision",
    "elastic_disco": "DiSCo with an elastic device",
    "quality": "Quality of migrated answers",
    "qoe": "Quality of experience",
    "arrivals": "Arrivals and queues",
    "load": "A server under load",
    "prediction": "Predicting TTFT",
    "sensitivity": "Sensitivity",
    "costs": "Costs and energy",
    "optimal": "The optimal plan",
    "overhead": "Overhead",
    "campaign": "Streams under faults",
    "chat": "Chat",
}


def folder(out: Path | str) -> Path:
    """A folder for exhibits, absolute or relative to the project's root; InputError for the root itself."""
    if (ROOT / out).resolve() == ROOT:
        raise InputError(f"out is {str(out)!r}; exhibits need a folder of their own, such as figures")
    return ROOT / out


def relative_path(path: Path) -> Path:
    """A path for messages: relative to the project's root if it is below that."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """`write_together` for one file."""
    path = Path(path)
    (path,) = write_together(path.parent, {path.name: content.encode() if isinstance(content, str) else content})
    return path


def write_together(where: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files of a folder so that a reader gets the old content or the new, never a part.

    All are on the disk before the first replaces its earlier version. ArtifactError, with the earlier files
    untouched, if the disk is full or the folder is not writable.
    """
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=where, prefix=".writing-") as temporary:
            for name, content in files.items():
                (Path(temporary) / name).write_bytes(content)
            for name in files:
                os.replace(Path(temporary) / name, where / name)
    except OSError as error:
        reason = f"{error.strerror or error}; free space or choose another folder"
        raise ArtifactError(f"cannot write {', '.join(files)} in {where}: {reason}") from error
    return [where / name for name in files]


def lock(path: Path, busy: str) -> IO[bytes]:
    """A file that is locked while it is open; ArtifactError(busy) if another process has locked it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
    except OSError:
        pass
    file.close()  # locked, or moved or removed by the process that had locked it until now
    raise ArtifactError(busy)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """`lock` for the duration of a block."""
    with lock(path, busy):
        yield
