"""`make pair NAME=value ...`: measure or read a pair, study it in the notebook `your_pair`, say where the page is."""

from collections.abc import Sequence
from pathlib import Path

from artifact.files import BUILD, relative_path
from artifact.pair import settings
from artifact.pair.measure import measure
from artifact.pair.pair import load
from artifact.publish import parameters
from artifact.publish import run as runner
from disco_core.errors import InputError

PAGE = BUILD / "pair.html"


def pair(values: Sequence[str]) -> None:
    """Do all of it for these `NAME=value` texts; InputError or ArtifactError, one line, for what cannot be done."""
    given = parameters.pairs(values, "pair")
    if not set(given) - set(settings.MAKE):
        raise InputError(f"give SERVER=http://host/v1 or TRACE=file; the names are\n{settings.described()}")
    folder = measure(given)
    print(f"{relative_path(folder)}: {len(load(folder).requests)} requests")
    shared = {"recorded": str(relative_path(folder)), "out": str(relative_path(folder / "exhibits"))}
    runner.run("your_pair", folder, **parameters.common("your_pair", shared))
    print(headline(folder))
    print(relative_path(PAGE))


def headline(folder: Path) -> str:
    """What the study says of a stored pair, in a few lines."""
    from artifact.pair.study import headline as of

    return str(of(load(folder)))
