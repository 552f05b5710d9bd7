"""The levels of a model, as a manifest lists them: one GGUF file each, tied to the model they were cut from.

    {"parent": {"file": ..., "sha256": ...}, "levels": [{"share": 0.8, "file": ..., "sha256": ..., "adapter": ...}]}

A level is named by the share of the parent's block weights that it has, in percent; anchors, which are never cut,
count. An adapter, if a level has one, is a file with its own sha256 that is loaded and applied with it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disco_core.errors import InputError
from disco_core.systems.model_arrays import as_path, file_sha256

MANIFEST = "levels.json"
REMEDY = "make the levels again"


@dataclass(frozen=True)
class Level:
    """One size of a model: the share of the block weights that it has, its file, and its adapter or None."""

    share: float
    path: Path
    adapter: Path | None = None

    @property
    def percent(self) -> int:
        """Its name: the share in whole percent."""
        return round(100 * self.share)


def load_levels(folder: Path | str, parent: Path | str | None = None) -> dict[int, Level]:
    """The levels in a folder by their percent, the largest first; every file is as it was when it was made.

    parent   the model they must have been cut from; None: whichever it was
    InputError, which names the file, if the manifest or a level is missing, changed, or of another parent.
    """
    folder = as_path(folder, "folder")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        made_from, listed = str(manifest["parent"]["sha256"]), list(manifest["levels"])
        if parent is not None and file_sha256(as_path(parent, "parent")) != made_from:
            raise InputError(f"the levels in {folder} were cut from another model than {Path(parent).name}; {REMEDY}")
        levels = [_level(folder, one) for one in listed]
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}; {REMEDY}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder / MANIFEST} is no manifest of levels ({what}); {REMEDY}") from None
    if not levels:
        raise InputError(f"{folder / MANIFEST} lists no level; {REMEDY}")
    found = {level.percent: level for level in sorted(levels, key=lambda level: -level.share)}
    if len(found) < len(levels):
        raise InputError(f"{folder / MANIFEST} lists two levels of the same percent; {REMEDY}")
    return found


def _level(folder: Path, listed: Mapping[str, Any]) -> Level:
    share, adapter = float(listed["share"]), listed.get("adapter")
    if isinstance(listed["share"], bool) or not 0.005 < share <= 1:
        raise ValueError(f"a share is at least a percent and at most 1, got {listed['share']!r:.40}")
    path = _verified(folder, listed)
    return Level(share, path, None if adapter is None else _verified(folder, adapter))


def _verified(folder: Path, listed: Mapping[str, Any]) -> Path:
    name = str(listed["file"])
    if Path(name).name != name or not name.isprintable():
        raise ValueError(f"a level's file is in the folder itself, got {name!r:.80}")
    path = folder / name
    if file_sha256(path) != listed["sha256"]:
        raise InputError(f"{path} is not the level that was made: its sha256 differs; {REMEDY}")
    return path
