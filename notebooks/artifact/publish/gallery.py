"""The gallery: `figures/README.md`, made from the provenance of the exhibits that are there."""

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from artifact.errors import ArtifactError
from artifact.files import FIGURES, ROOT, write_atomic
from artifact.publish.provenance import Kind, changed

_HEAD = """# Figures

Every exhibit is one stem: the picture as .svg, .pdf and .png, its numbers as .csv (tables also as .md and .tex),
and as .json where they come from (notebook, parameters, data, packages). All of them are the same bytes on every run;
*measured* ones are rendered from `data/measured/`, hold what one machine did, and name it.

To cite one, take the line below it, with the sha256 of its csv; CITATION.cff has the entries for the project and the
paper. Figures are under CC BY 4.0 (LICENSE-figures): use them, and say where they are from.

This page is written by `make figures`.
"""


def exhibits(directory: str | Path = FIGURES) -> list[dict[str, Any]]:
    """The provenance of every exhibit, in the order of their stems.

    Raises ArtifactError where there is no exhibit, one has lost a file, or it or its data have changed since.
    """
    folder = ROOT / directory
    paths = sorted(path for path in folder.glob("*.json") if not path.name.endswith(".claims.json"))
    if not paths:
        raise ArtifactError(f"no exhibit in {directory}; run `make figures` first")
    return [_read(path) for path in paths]


def page(directory: str | Path = FIGURES) -> tuple[Path, str]:
    """`directory/README.md` as it is to be, one section per exhibit. ArtifactError as `exhibits`."""
    return ROOT / directory / "README.md", "\n".join([_HEAD, *map(_section, exhibits(directory))])


def gallery(directory: str | Path = FIGURES) -> Path:
    """Write the page of a folder of exhibits, and return its path. ArtifactError as `exhibits`."""
    path, text = page(directory)
    same = path.exists() and path.read_text(encoding="utf-8") == text
    return path if same else write_atomic(path, text)


def citation(found: Mapping[str, Any]) -> str:
    """How to cite an exhibit."""
    paper = "Jin et al. (2025)" if str(found["stem"]).startswith("pd_device") else "Sun, Wang and Lai (2025)"
    digest = str(found["digest"])[: len("sha256:") + 12]
    return f"disco-core {metadata.version('disco-core')}, exhibit `{found['stem']}`, {digest}; after {paper}."


def origin(found: Mapping[str, Any]) -> str:
    """What kind of numbers an exhibit shows, from where, and who measured them."""
    by = f", by `{found['notebook']}`" if found["notebook"] else ""
    return f"{_kind(found)}, from {found['source']}{by}."


def _section(found: dict[str, Any]) -> str:
    stem = found["stem"]
    links = " · ".join(f"[{name.rpartition('.')[2]}]({name})" for name in [*found["files"], f"{stem}.json"])
    return f"""## {stem}

![{stem}]({stem}.svg)

{found["caption"]}

{origin(found)} {links}

> {citation(found)}
"""


def _kind(found: Mapping[str, Any]) -> str:
    if found["kind"] != "measured":
        return str(found["kind"]).capitalize()
    its = found["machine"]
    memory = "" if its["memory_gib"] is None else f", {its['memory_gib']:.0f} GiB"
    return f"Measured on {its['cpu']}, {its['cores']} cores{memory}, on {found['date']}"


def _read(path: Path) -> dict[str, Any]:
    found = _provenance(path)
    for name, digest in found["files"].items():
        try:
            content = (path.parent / name).read_bytes()
        except OSError:
            raise ArtifactError(f"exhibit {path.stem} has no {name}; run `make figures`") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtifactError(f"{name} is not what was rendered; run `make figures`, or restore it")
    if older := changed(found):
        raise ArtifactError(f"exhibit {path.stem} is older than {', '.join(older)}; run `make figures`")
    return found


def _provenance(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        texts = [found[name] for name in ("caption", "source", "digest")]
        texts += [found["notebook"]] if found["notebook"] is not None else []
        dicts = [found[name] for name in ("data", "files", "parameters", "packages")]
        whole = found["stem"] == path.stem and found["kind"] in get_args(Kind)
        if found["kind"] == "measured":
            texts += [found["date"], found["machine"]["cpu"]]
            whole &= {"cores", "memory_gib"} <= found["machine"].keys()
        if whole and all(isinstance(one, str) for one in texts) and all(isinstance(one, dict) for one in dicts):
            return dict(found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ArtifactError(f"{path} is not the provenance of an exhibit; delete it and run its notebook again")
