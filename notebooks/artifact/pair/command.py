"""`make pair NAME=value ...`: measure or read a pair, study it in the notebook `your_pair`, say where the page is."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from artifact.files import relative_path
from artifact.pair import settings
from artifact.pair.measure import measure
from artifact.pair.pair import load
from artifact.publish import parameters
from artifact.publish import run as runner
from disco_core.errors import InputError


def from_make() -> dict[str, str]:
    """The variables on the command line of the `make` that runs this, whatever quotes or spaces they have.

    Make passes their names on in MAKEFLAGS, and their values in the environment, without a shell in between.
    """
    _, _, variables = f" {os.environ.get('MAKEFLAGS', '')}".partition(" -- ")
    names = re.findall(r"(?:^|(?<!\\)\s)([A-Za-z_]\w*):*[?+]?=", variables)
    return {name: os.environ.get(name, "") for name in names}


def pair(given: Mapping[str, str]) -> None:
    """Do all of it for these settings; InputError or ArtifactError, one line, for what cannot be done."""
    if not set(given) - set(settings.MAKE):
        raise InputError(f"give SERVER=http://host/v1 or TRACE=file; the names are\n{settings.described()}")
    folder = measure(given)
    print(f"{relative_path(folder)}: {len(load(folder).requests)} requests")
    page = folder.with_name(f"{folder.name}.html")
    paths = {"recorded": folder, "out": folder / "exhibits", "page": page}
    shared = {name: str(relative_path(path)) for name, path in paths.items()}
    runner.run("your_pair", folder, **parameters.common("your_pair", shared))
    print(headline(folder))
    print(relative_path(page))


def headline(folder: Path) -> str:
    """What the study says of a stored pair, in a few lines."""
    from artifact.pair.study import headline as of

    return str(of(load(folder)))
