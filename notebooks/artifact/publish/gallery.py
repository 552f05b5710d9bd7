"""The gallery: `figures/README.md`, made from the provenance of the exhibits that are there."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from artifact.errors import ArtifactError
from artifact.files import FIGURES, ROOT, write_atomic
from artifact.publish import cite, claims_table
from artifact.publish.claims import MISSING
from artifact.publish.provenance import Kind, changed

_HEAD = """# Figures and claims

This page is written by `make figures`. First every claim and its verdict, then every exhibit.

## Claims

{claims}

{count}.

{glossary}

## Exhibits

A figure is one stem: .svg, .pdf and .png, its numbers as .csv, and as .json its texts and where it comes from
(notebook, parameters, data, packages). A table is .csv, .md and .tex. All of them are the same bytes on every run.
*Measured* exhibits are rendered from `data/measured/`: they hold what one machine did, and name it.

To cite one, take the line below it, with the sha256 of its csv, or its entry in [exhibits.bib](exhibits.bib), which
also has the three papers. Figures are under CC BY 4.0 (LICENSE-figures): use them, and say where they are from.
"""
GLOSSARY = """\
- **DIFFERS**: the claim was tested and came out otherwise; its row in [data/claims.csv](../data/claims.csv) has the
  rule behind the verdict, and `git log -p data/claims.csv` every change of one. **NOT TESTED**: something is missing,
  such as a key.
- **ours**: one value, or the median of several with their smallest and largest, in the unit of the claim; for L1,
  D10a and Q1 the end of a 95 % band, as the rule says.
- **Mark** (in brackets): P is stated by the paper, N by a secondary summary of it that we could not check, R is
  reconstructed or ours.
- **paper**: the paper's value, with ± the tolerance of our rule. Where the paper states no number (D10a, D13, D14,
  P2, and all of L, Q, E, S, R) it is our bound.
- **place**: where our value lies against the paper's: inside its range, within the tolerance, or beyond it, on the
  better or the worse side.
- **TTFT**: time to first token, from the request to the first token of the answer. **TBT**: time between tokens, as
  the reader gets them. **P99**: the value that 99 of 100 do not exceed.
- **QoE**: quality of experience, from 0 to 1; 1 if no token comes later than the reader wants it.
- **b**: the budget, the share of all prompt tokens that may be prefilled on the constrained endpoint.
- **DiSCo-S**, **DiSCo-D**: DiSCo with the server (-S) or the device (-D) as the constrained endpoint.
- **Stoch**: the paper's baseline as we read it (R): random dispatch, which sends a request to the constrained
  endpoint alone with probability b, else to the other one alone. **Stoch+**, a reading that favours the baseline,
  always sends it to the other endpoint and, with probability b, to the constrained one as well.
- **pair**: one service and one device, with one of the two endpoints constrained. **recorded pairs**: TTFTs of both
  endpoints for the same prompt.
- **migration**: generation moves from one endpoint to the other in mid-answer, at the **hand-over point**.
- **emulated network delay**: a local server's first token is delayed to a recorded TTFT of a commercial service.
  gpt-4o-mini's, which is used here, is an estimate from calls that did not stream.
- **chrF**: F-score of the character n-grams that two texts share. **margin**: the largest loss that would still count
  as no loss (non-inferiority margin).
"""
_LONGEST = 40  # rows of a table that the page shows; a longer one is linked


def exhibits(directory: str | Path = FIGURES) -> list[dict[str, Any]]:
    """The provenance of every exhibit, in the order of their stems.

    Raises ArtifactError where there is no exhibit, one has lost a file, or it or its data have changed since.
    """
    folder = ROOT / directory
    paths = sorted(path for path in folder.glob("*.json") if not path.name.endswith(".claims.json"))
    if not paths:
        raise ArtifactError(f"no exhibit in {directory}; run `make figures` first")
    return [_read(path) for path in paths]


def pages(directory: str | Path = FIGURES) -> dict[Path, str]:
    """The pages of a folder of exhibits, README.md and exhibits.bib, by path; of `figures` also codecheck.yml.

    ArtifactError as `exhibits`.
    """
    folder, every = ROOT / directory, exhibits(directory)
    claims = [one for one in claims_table.lines(directory) if one.verdict != MISSING]
    head = _HEAD.format(
        claims=claims_table.markdown(claims), count=claims_table.count(claims), glossary=GLOSSARY.rstrip()
    )
    readme = "\n".join([head, *(_section(one, folder) for one in every)])
    made = {folder / "README.md": readme, folder / "exhibits.bib": cite.bibliography(every)}
    return made | ({ROOT / "codecheck.yml": cite.codecheck(every)} if folder == FIGURES else {})


def gallery(directory: str | Path = FIGURES) -> Path:
    """Write the pages of a folder of exhibits, and return the first one's path. ArtifactError as `exhibits`."""
    made = pages(directory)
    for path, text in made.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)
    return next(iter(made))


def origin(found: Mapping[str, Any]) -> str:
    """What kind of numbers an exhibit shows, from where, and who measured them."""
    by = f", by `{found['notebook']}`" if found["notebook"] else ""
    return f"{_kind(found)}, from {found['source']}{by}."


def _section(about: dict[str, Any], folder: Path) -> str:
    stem = about["stem"]
    links = " · ".join(f"[{name.rpartition('.')[2]}]({name})" for name in [*about["files"], f"{stem}.json"])
    body = f"![{about['title']}]({stem}.svg)"
    if f"{stem}.svg" not in about["files"]:
        table = (folder / f"{stem}.md").read_text(encoding="utf-8").rstrip()
        body = (
            table if table.count("\n") <= _LONGEST else f"[{stem}.md]({stem}.md) has {table.count(chr(10)) - 1} rows."
        )
    texts = "\n\n".join(filter(None, [body, about["caption"], about["interpretation"]]))
    return f"""<a id="{stem}"></a>

### {about["title"]}

{texts}

`{stem}`: {origin(about)} {links}

> {cite.citation(about)}
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
        texts = [found[name] for name in ("title", "caption", "interpretation", "source", "digest")]
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
