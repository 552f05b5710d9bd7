"""The files of verdicts, `<stem>.claims.json` beside the exhibits: a list of objects, in the order of their ids."""

import json
import re
from pathlib import Path
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import write_atomic

PASS, DIFFERS, NOT_TESTED = "PASS", "DIFFERS", "NOT TESTED"
Verdict = dict[str, Any]  # one object of a file


def add(path: Path, entry: Verdict) -> None:
    """Write a verdict, in place of an earlier one of the same claim."""
    others = [old for old in read(path) if old["id"] != entry["id"]] if path.exists() else []
    entries = sorted([*others, entry], key=lambda one: _natural(one["id"]))
    write_atomic(path, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def read(path: Path) -> list[Verdict]:
    """The verdicts in a file. ArtifactError if it holds anything else."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(entries, list) and all(map(_whole, entries)):
            return list(entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ArtifactError(f"{path} is not a list of verdicts; delete it and run its notebook again")


def _whole(entry: Verdict) -> bool:
    """Whether an entry says who is judged, how, and, where it was tested, with which value."""
    texts = isinstance(entry["id"], str) and isinstance(entry["reason"], str)
    if entry["verdict"] == NOT_TESTED:
        return texts and entry["ours"] is None
    value = isinstance(entry["ours"]["text"], str) and isinstance(entry["ours"]["median"], int | float)
    return texts and entry["verdict"] in (PASS, DIFFERS) and value


def _natural(id: str) -> list[tuple[int, str]]:
    # D2 before D10, D10 before D10a
    return [(int(number or 0), word) for number, word in re.findall(r"(\d+)|(\D+)", id)]
