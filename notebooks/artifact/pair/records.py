"""Files of records: the rows of a csv, JSON or JSON lines file, and their columns as numbers or times.

Every failure is an ArtifactError of one line without the path, which the caller knows.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from artifact.errors import ArtifactError
from disco_core.checks import Floats

Row = Mapping[str, Any]
_UTC = "datetime64[ns, UTC]"


def load(path: Path) -> Sequence[Row]:
    """The rows of a csv, or the objects of a JSON list, of its member `data`, or of JSON lines; at least one.

    ArtifactError for a file that cannot be read, is empty, or is none of these.
    """
    text = _text(path)
    if text.lstrip()[0] not in "{[":
        return _csv(text)
    rows = _documents(text)
    if len(rows) == 1:
        inner = rows[0].get("data") if isinstance(rows[0], dict) else rows[0]
        rows = inner if isinstance(inner, list) else rows
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ArtifactError("JSON without a list of objects")
    return rows


def known(value: Any) -> bool:
    """Whether the tool wrote a value: not None, NaN or an empty text."""
    return bool(value is not None and value == value and value != "")  # NaN differs from itself


def need(rows: Sequence[Row], names: Sequence[str], hint: str = "") -> None:
    """ArtifactError that names the columns without any value, followed by the hint."""
    missing = [name for name in names if not any(known(row.get(name)) for row in rows)]
    if missing:
        raise ArtifactError(f"no values of {', '.join(missing)}{hint}")


def first_known(rows: Sequence[Row], name: str, otherwise: str) -> str:
    """The first name if any row has a value of it, else the other name."""
    return name if any(known(row.get(name)) for row in rows) else otherwise


def column(rows: Sequence[Row], name: str) -> Floats:
    """`numbers` of one column, NaN in rows without it."""
    return numbers([row.get(name) for row in rows], name)


def numbers(values: Sequence[Any], name: str) -> Floats:
    """The values as float64, NaN where there is none; ArtifactError for text, Booleans, lists and objects."""
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        try:
            if isinstance(value, bool) or (isinstance(value, str) and ("_" in value or not value.isascii())):
                raise TypeError  # float() takes 1_000 and the digits of other scripts
            if known(value):
                found[row] = float(value)
        except (TypeError, ValueError, OverflowError):
            kind = "a number with a decimal point" if isinstance(value, str) and "," in value else "a number"
            raise ArtifactError(f"{name} must be {kind}, got {value!r:.40} in request {row + 1}") from None
    return found


def times(rows: Sequence[Row], name: str) -> Any:
    """One column of times as a Series in UTC, NaT where there is none.

    Texts are ISO 8601, in UTC where they name no zone; numbers are UNIX seconds.
    """
    values = pd.Series([row[name] if known(row.get(name)) else None for row in rows], dtype=object)
    unix = values.map(lambda value: isinstance(value, int | float) and not isinstance(value, bool))
    try:
        found = pd.to_datetime(values.mask(unix), format="ISO8601", utc=True, errors="coerce").astype(_UTC)
        if unix.any():
            found[unix] = pd.to_datetime(values[unix].astype(float), unit="s", utc=True).astype(_UTC)
    except (pd.errors.OutOfBoundsDatetime, OverflowError):
        raise ArtifactError(f"{name} has a time outside the years 1678 to 2261") from None
    wrong = values[found.isna() & values.notna()]
    if not wrong.empty:
        raise ArtifactError(f"{name} must be an ISO 8601 time, got {wrong.iloc[0]!r:.40}")
    return found


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ArtifactError("no text in UTF-8; unpack or export it first") from None
    if not text.strip():
        raise ArtifactError("the file is empty")
    return text


def _csv(text: str) -> Sequence[Row]:
    """The rows of a csv whose fields are separated by the most frequent of comma, semicolon and tab in line one."""
    first = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    separator = max(",;\t", key=first.count)
    names = [name.strip().strip('"') for name in first.split(separator)]
    for name in names:
        if name and names.count(name) > 1:
            raise ArtifactError(f"the csv has {names.count(name)} columns {name}")
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=str, skipinitialspace=True, sep=separator)
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise ArtifactError(f"neither JSON nor a csv ({' '.join(str(error).split())})") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    if not isinstance(frame.index, pd.RangeIndex):
        raise ArtifactError("the rows of the csv have more fields than its first line names")
    if frame.empty:
        raise ArtifactError(f"a csv without rows; columns {', '.join(frame.columns)}")
    return [*frame.to_dict("records")]


def _documents(text: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except ValueError as error:
        whole = str(error)
    except RecursionError:
        raise ArtifactError("JSON that is nested too deep") from None
    try:
        json.loads(text.lstrip().split("\n", 1)[0])
    except ValueError:
        raise ArtifactError(f"damaged JSON, perhaps cut off ({whole})") from None
    documents: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            documents += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError):
            raise ArtifactError(f"line {number} is no JSON; delete it if the run was interrupted there") from None
    return documents
