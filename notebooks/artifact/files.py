"""Where the project's files are, and how one is written: whole or not at all."""

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

# The notebooks whose exhibits the report and the index show, as one would read them, with their titles.
CHAPTERS = {
    "system": "The system",
    "summary": "The results",
    "traces": "Public traces",
    "endpoints": "One device and one server",
    "dispatch": "Dispatch",
    "migration": "Migration",
    "live": "Live streams",
    "pd_device": "P/D-Device",
    "quality": "Quality of migrated answers",
    "qoe": "Quality of experience",
    "arrivals": "Arrivals and queues",
    "prediction": "Predicting TTFT",
    "sensitivity": "Sensitivity",
    "costs": "Costs and energy",
    "overhead": "Overhead",
    "chat": "Chat",
}


def folder(out: Path | str) -> Path:
    """A folder for exhibits, given absolute or relative to the project's root, which itself it must not be."""
    if (ROOT / out).resolve() == ROOT:
        raise InputError(f"out is {str(out)!r}; exhibits need a folder of their own, such as figures")
    return ROOT / out


def shown(path: Path) -> Path:
    """A path as it is told: relative to the project's root where it lies below that."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises ArtifactError, with the earlier file untouched, if the disk is full or the folder is not writable.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}; the earlier file is untouched") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path


def write_together(where: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write several files of a folder: all are on the disk before the first one replaces its earlier self.

    Raises ArtifactError, with the earlier files whole, where the disk is full or the folder is not writable.
    """
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=where, prefix=".writing-") as aside:
            for name, content in files.items():
                write_atomic(Path(aside) / name, content)
            for name in files:
                os.replace(Path(aside) / name, where / name)
    except (OSError, ArtifactError) as error:
        why = error if isinstance(error, OSError) else error.__cause__
        text = getattr(why, "strerror", None) or str(error)
        raise ArtifactError(
            f"cannot write {', '.join(files)} in {where}: {text}; free space or choose another folder"
        ) from None
    return [where / name for name in files]


def lock(path: Path, busy: str) -> IO[bytes]:
    """An open file that is locked as long as it stays open; ArtifactError `busy` where another process holds it."""
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
    file.close()  # locked, or moved away or removed by who held it until now
    raise ArtifactError(busy)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """`lock` for the time of a block."""
    with lock(path, busy):
        yield


def _umask() -> int:
    # mkstemp makes private files; the artifact's are as readable as any other
    mask = os.umask(0)
    os.umask(mask)
    return mask
