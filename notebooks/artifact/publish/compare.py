"""Whether exhibits and verdicts come out as they were committed, and putting those that do not in their place.

In the environment that requirements.lock pins every file is compared byte for byte. In another one numbers are,
within RELATIVE; pictures then may differ, since other versions draw otherwise.
"""

import csv
import json
import math
import re
from dataclasses import dataclass, field
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import ROOT, write_together
from artifact.publish.provenance import PACKAGES

LOCK = ROOT / "requirements.lock"
RELATIVE = 1e-6


@dataclass(frozen=True)
class Comparison:
    """Exhibits and lists of verdicts by stem: how many there are, and of those that differ in what."""

    exhibits: int
    other_packages: list[str]
    differ: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)  # committed, but made by no notebook

    def __str__(self) -> str:
        told = [f"{stem}: {what}" for stem, what in self.differ.items()]
        told += [f"{stem}: committed, but not made any more" for stem in self.gone]
        if self.other_packages:
            other = ", ".join(self.other_packages)
            told.append(f"Not the locked environment ({other}): numbers were compared, pictures may not agree.")
        return "\n".join([*told, f"{self.exhibits} exhibits, {len(self.differ) + len(self.gone)} differ"])

    @property
    def same(self) -> bool:
        """Whether everything that was compared agrees."""
        return not self.differ and not self.gone


def compare(made: str | Path, committed: str | Path) -> Comparison:
    """Compare two folders of exhibits and verdicts. ArtifactError where one holds none or cannot be read."""
    here, there = _stems(ROOT / made), _stems(ROOT / committed)
    other = unlocked()
    differ = {stem: what for stem, names in here.items() if (what := _differ(stem, names, there.get(stem), other))}
    exhibits = sum(not stem.endswith(".claims") for stem in here)
    return Comparison(exhibits, other, differ, sorted(there.keys() - here.keys()))


def update(made: str | Path, committed: str | Path, found: Comparison) -> None:
    """Put what differs in the place of what is committed, an exhibit at a time."""
    here, there = _stems(ROOT / made), _stems(ROOT / committed)
    for stem in found.differ:
        write_together(ROOT / committed, {path.name: path.read_bytes() for path in here[stem].values()})
        for name in there.get(stem, {}).keys() - here[stem].keys():
            there[stem][name].unlink()


def unlocked() -> list[str]:
    """The packages that compute and draw whose installed version is not the one that requirements.lock pins."""
    try:
        lock = LOCK.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"cannot read {LOCK.name}: {error.strerror}") from None
    pinned = re.findall(
        r"^([a-z0-9-]+)(?:\[.+?\])?==([^\s;]+)", lock, re.MULTILINE
    )  # of some, two: by Python version
    versions = {name: metadata.version(name) for name in PACKAGES}
    return [f"{name} {its}" for name, its in versions.items() if (name, its) not in pinned]


def _stems(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of every exhibit, and of every list of verdicts as `<notebook>.claims`, by what follows the stem."""
    stems = sorted(path.stem for path in folder.glob("*.json"))
    if not stems:
        raise ArtifactError(f"no exhibit in {folder}; run `make figures` first")
    return {
        stem: {path.name.removeprefix(stem): path for path in folder.glob(f"{stem}.*") if path.stem == stem}
        for stem in stems
    }


def _differ(stem: str, here: dict[str, Path], there: dict[str, Path] | None, other: list[str]) -> str:
    """In what an exhibit differs; nothing if in nothing that counts."""
    if there is None:
        return "new"
    if missing := (here.keys() ^ there.keys()):
        return f"{', '.join(f'{stem}{name}' for name in sorted(missing))} only in one of them"
    return ", ".join(name for name in sorted(here) if not _alike(here[name], there[name], bool(other)))


def _alike(one: Path, another: Path, numbers_only: bool) -> bool:
    first, second = one.read_bytes(), another.read_bytes()
    if first == second:
        return True
    if not numbers_only:
        return False
    if one.suffix == ".csv":
        return _close(*(list(csv.reader(StringIO(text.decode()))) for text in (first, second)))
    if one.name.endswith(".claims.json"):
        return _close(json.loads(first), json.loads(second))
    return True


def _close(one: Any, another: Any) -> bool:
    """Equal, numbers (also those within a text) within RELATIVE."""
    if isinstance(one, dict) and isinstance(another, dict):
        return one.keys() == another.keys() and all(_close(one[key], another[key]) for key in one)
    if isinstance(one, list) and isinstance(another, list):
        return len(one) == len(another) and all(map(_close, one, another))
    numbers = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    texts = [re.split(f"({numbers})", str(value)) for value in (one, another)]
    return len(texts[0]) == len(texts[1]) and all(
        a == b or (at % 2 == 1 and math.isclose(float(a), float(b), rel_tol=RELATIVE))
        for at, (a, b) in enumerate(zip(*texts, strict=True))
    )
