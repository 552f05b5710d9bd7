"""The gallery: `figures/README.md`, made from the provenance of the exhibits that are there.

python -m disco_core.artifact.gallery figures
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from disco_core.artifact.commands import command
from disco_core.artifact.files import FIGURES, ROOT, write_atomic
from disco_core.errors import ArtifactError

_SUFFIXES = ("svg", "pdf", "png", "csv")
_HEAD = """# Figures

Every exhibit is one stem: the picture as .svg, .pdf and .png, its numbers as .csv, and as .json where they
come from (notebook, parameters, data, a digest of them all). *Simulated* exhibits, and those
*computed* from data alone, are the same bytes on every run; *measured* ones hold what one machine did, and name it.

To cite a figure, name the project (see CITATION.cff), the stem and the digest of its .json. Figures are under
CC BY 4.0 (LICENSE-figures): use them, and say where they are from.

This page is written by `make reproduce`.
"""


def gallery(directory: str | Path = FIGURES) -> Path:
    """Write `directory/README.md`, one section per exhibit in the order of their stems, and return its path.

    Raises ArtifactError where there is no exhibit, or one has lost a file.
    """
    folder = ROOT / directory
    paths = sorted(path for path in folder.glob("*.json") if not path.name.endswith(".claims.json"))
    if not paths:
        raise ArtifactError(f"no exhibit in {directory}; run `make reproduce` first")
    return write_atomic(folder / "README.md", "\n".join([_HEAD, *map(_section, paths)]))


def _section(path: Path) -> str:
    found = _read(path)
    stem = path.stem
    for suffix in _SUFFIXES:
        if not path.with_suffix(f".{suffix}").exists():
            raise ArtifactError(f"exhibit {stem} has no {stem}.{suffix}; run its notebook again")
    links = " · ".join(f"[{suffix}]({stem}.{suffix})" for suffix in (*_SUFFIXES, "json"))
    return f"""## {stem}

![{stem}]({stem}.svg)

{found["caption"]}

{_kind(found)}, from {found["source"]}{_notebook(found)}. {links}
"""


def _kind(found: dict[str, Any]) -> str:
    if found["kind"] != "measured":
        return str(found["kind"]).capitalize()
    its = found["machine"]
    memory = "" if its["memory_gib"] is None else f", {its['memory_gib']:.0f} GiB"
    return f"Measured on {its['cpu']}, {its['cores']} cores{memory}, on {found['date']}"


def _notebook(found: dict[str, Any]) -> str:
    return f", by `{found['notebook']}`" if found["notebook"] else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        needed = {"stem", "kind", "caption", "source", "notebook"}
        needed |= {"machine", "date"} if found["kind"] == "measured" else set()
        if needed <= found.keys():
            return dict(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ArtifactError(f"{path} is not the provenance of an exhibit; delete it and run its notebook again")


@command("the earlier gallery is untouched")
def main(argv: list[str] | None = None) -> int:
    """Write the gallery of a directory."""
    options = argparse.ArgumentParser(prog="python -m disco_core.artifact.gallery", description=main.__doc__)
    options.add_argument("directory", nargs="?", default="figures", help="folder of the exhibits")
    gallery(options.parse_args(argv).directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
