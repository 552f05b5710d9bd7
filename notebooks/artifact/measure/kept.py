"""A csv of what was measured on this machine: made where there is none, kept for the next call, checked when read."""

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from artifact.commands import command
from artifact.errors import ArtifactError
from artifact.files import BUILD, ROOT, write_atomic
from disco_core.errors import InputError


@dataclass(frozen=True)
class Kept:
    """One such csv, `measured/<name>.csv` in the build folder; that of quick measurements is apart.

    what      what it holds, as messages say it
    columns   which it needs
    make      measures; told whether quickly
    check     raises InputError for values that cannot have been measured
    digits    float format of what is written
    """

    name: str
    what: str
    columns: Collection[str]
    make: Callable[[bool], pd.DataFrame]
    check: Callable[[pd.DataFrame], None]
    digits: str = "%.6f"

    def path(self, *, quick: bool = False) -> Path:
        """Where it is kept if nobody says otherwise."""
        return BUILD / ("quick" if quick else "") / "measured" / f"{self.name}.csv"

    def measurements(self, given: Path | str = "", *, quick: bool = False) -> tuple[Path, pd.DataFrame]:
        """Where the measurements are and what they are; without a file given or kept they are made.

        Raises ArtifactError for a file that does not hold them.
        """
        path = ROOT / given if given else self.path(quick=quick)
        if not given and not path.exists():
            self.measure(path, quick=quick)
        with reading(path, self.what):
            found = pd.read_csv(path)
            require(found, self.columns, "it")
            self.check(found)
        return path, found

    def measure(self, path: Path, *, quick: bool = False) -> pd.DataFrame:
        """Make them and write them; interrupted, the earlier file stays."""
        found = self.make(quick)
        write_atomic(path, found.to_csv(index=False, float_format=self.digits, lineterminator="\n"))
        return found

    def main(self, argv: Sequence[str] | None, *, module: str, does: str, small: str) -> int:
        """The command of the module that measures: exit 0, 1 with one line for an error, 130 when interrupted."""

        @command("no measurement was kept")
        def guarded() -> int:
            parser = argparse.ArgumentParser(prog=f"python -m artifact.measure.{module}", description=does)
            parser.add_argument("--out", type=Path, default=self.path(), help="csv to write (default: %(default)s)")
            parser.add_argument("--quick", action="store_true", help=small)
            options = parser.parse_args(argv)
            rows = self.measure(options.out, quick=options.quick)
            print(f"{self.what}, {len(rows)} rows: {options.out}")
            return 0

        return guarded()


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Tell whatever goes wrong while `path` is read and checked as one ArtifactError that names it."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:  # pandas' own errors are ValueErrors, and so is InputError
        said = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{path} does not hold {what}: {said}; without it, they are made anew") from None


def require(table: pd.DataFrame, columns: Collection[str], name: str) -> None:
    """Raise InputError, telling which, where a table lacks columns."""
    if missing := [column for column in columns if column not in table]:
        raise InputError(f"{name} has no column {', '.join(missing)}")
