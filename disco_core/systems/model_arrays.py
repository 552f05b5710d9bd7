"""Arrays that were made offline for one model: an npz file that says, by sha256, which model that is."""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disco_core.errors import InputError

_PARENT = "parent_sha256"


def as_path(value: Any, name: str) -> Path:
    """The value as a path; InputError if it is neither a path nor a text."""
    if not isinstance(value, str | Path):
        raise InputError(f"{name} must be a path, got {value!r:.80}")
    return Path(value)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_arrays(path: Path | str, parent: Path | str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays that belong to the model in the file `parent`; the file is complete or as it was before.

    InputError, in one line, if the model cannot be read or the file cannot be written.
    """
    target = as_path(path, "path")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        content = io.BytesIO()
        members: dict[str, Any] = {_PARENT: np.array(file_sha256(as_path(parent, "parent"))), **arrays}
        np.savez_compressed(content, **members)
        partial.write_bytes(content.getvalue())
        partial.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target} for the model {parent}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def load_arrays(path: Path | str, parent: Path | str | None, names: Sequence[str], remedy: str) -> dict[str, Any]:
    """The named arrays of a file.

    parent   the model they must have been made for; None: whichever it was
    remedy   what to do about a file that cannot be used, the end of every message
    InputError, in one line, for a file that is missing, damaged, without one of the arrays, or of another model.
    """
    path = as_path(path, "path")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as opened:
            made_for = str(opened[_PARENT])
            arrays = {name: opened[name] for name in names}
        same = parent is None or file_sha256(as_path(parent, "parent")) == made_for
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror or error}; {remedy}") from None
    except Exception as error:  # a damaged file fails in many ways: zip, zlib, numpy's header, a missing array
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path} does not hold {', '.join(names)} ({what}); {remedy}") from None
    if not same:
        raise InputError(f"{path} was made for another model than {Path(str(parent)).name}; {remedy}")
    return arrays
