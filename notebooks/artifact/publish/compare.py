"""Whether exhibits and verdicts come out as they were committed, and putting those that do not in their place.

In the environment that the committed exhibits were made in every file is compared byte for byte. In another one (the
lock has two versions of some packages, by that of Python) numbers are, to one unit of the last digit that is printed;
pictures then may differ, since other versions draw otherwise.
"""

import csv
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import ROOT, write_together

DIGITS = 6  # of every number in a csv
SMALLEST = 1e-9  # below it a number is the rounding of others
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"


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
            told.append(f"Not the environment of figures/ ({other}): numbers were compared, pictures may not agree.")
        return "\n".join([*told, f"{self.exhibits} exhibits, {len(self.differ) + len(self.gone)} differ"])

    @property
    def same(self) -> bool:
        """Whether everything that was compared agrees."""
        return not self.differ and not self.gone


def compare(made: str | Path, committed: str | Path) -> Comparison:
    """Compare two folders of exhibits and verdicts. ArtifactError where none was made, or one cannot be read."""
    here, there = _stems(ROOT / made), _stems(ROOT / committed)
    if not here:
        raise ArtifactError(f"no exhibit in {made}; run `make figures` first")
    other = unlocked(names[".json"] for stem, names in there.items() if not stem.endswith(".claims"))
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


def unlocked(provenances: Iterable[Path]) -> list[str]:
    """The packages whose installed version is not the one that the committed exhibits were made with."""
    made: dict[str, set[str]] = {}
    for path in provenances:
        try:
            packages = json.loads(path.read_text(encoding="utf-8"))["packages"]
            for name, version in packages.items():
                made.setdefault(name, set()).add(version)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # it is compared, and told, as a file that differs
    return [f"{name} {its}" for name in made if {its := _installed(name)} != made[name]]


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is not installed"


def _stems(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of every exhibit, and of every list of verdicts as `<notebook>.claims`, by what follows the stem."""
    stems = sorted(path.stem for path in folder.glob("*.json"))
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
        return _close(*map(_cells, (first, second)))
    if one.name.endswith(".claims.json"):
        return _close(json.loads(first), json.loads(second))
    return True


def _cells(table: bytes) -> list[list[Any]]:
    """The cells of a csv, each a number or a text."""
    rows = csv.reader(StringIO(table.decode()))
    return [[float(cell) if re.fullmatch(_NUMBER, cell) else cell for cell in row] for row in rows]


def _close(one: Any, another: Any) -> bool:
    """Equal, numbers to one unit of the last of their DIGITS, those within a text of the last one there."""
    if one == another:
        return True
    if isinstance(one, dict) and isinstance(another, dict):
        return one.keys() == another.keys() and all(_close(one[key], another[key]) for key in one)
    if isinstance(one, list) and isinstance(another, list):
        return len(one) == len(another) and all(map(_close, one, another))
    if isinstance(one, int | float) and isinstance(another, int | float):
        most = max(abs(one), abs(another))
        return _within(one, another, 10.0 ** (math.floor(math.log10(most)) - DIGITS + 1))
    texts = re.split(_NUMBER, str(one)), re.split(_NUMBER, str(another))
    return len(texts[0]) == len(texts[1]) and all(
        a == b or (at % 2 == 1 and _within(float(a), float(b), _printed(a, b)))
        for at, (a, b) in enumerate(zip(*texts, strict=True))
    )


def _within(one: float, another: float, unit: float) -> bool:
    return abs(one - another) <= max(unit * (1 + 1e-6), SMALLEST)


def _printed(*numbers: str) -> float:
    """One unit of the last digit that is printed, of the number with more of them; none of a count."""
    last = min(int(Decimal(number).as_tuple().exponent) for number in numbers)
    return 10.0**last if last < 0 else 0.0
