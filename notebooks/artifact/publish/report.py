"""The report: one self-contained page with the claims, every exhibit and how each was made.

Pictures and style are in the page, so it opens without a network, prints, and reads on a phone. What an exhibit shows
is told by its notebook: the text above the cell that renders it, and what that cell printed where an executed copy is
at hand.
"""

import base64
import itertools
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from artifact.errors import ArtifactError
from artifact.files import BUILD, FIGURES, READING_ORDER, ROOT, write_atomic
from artifact.measure.machine import machine
from artifact.publish import claims_table
from artifact.publish.gallery import citation, exhibits, origin

TEMPLATE = Path(__file__).with_name("report.html.jinja")
_LONGEST_TABLE = 60  # rows; a longer one is shown as its picture


def report(
    directory: str | Path = FIGURES,
    out: str | Path = BUILD / "report.html",
    executed: str | Path = BUILD / "notebooks",
    here: str | Path | None = None,
) -> Path:
    """Write the report of a directory of exhibits and return its path.

    executed    folder of executed notebooks; where one is missing, what it printed is left out
    here        folder of the verdicts on what this machine measured, shown beside the reference's

    Raises ArtifactError where an exhibit has lost a file, is older than its data, or is named by a tested claim but
    was not rendered.
    """
    from jinja2 import Environment

    found, shown = exhibits(directory), claims_table.lines(directory, here=here)
    if missing := claims_table.lost(directory, shown):
        raise ArtifactError(f"no exhibit in {directory} is called {', '.join(missing)}; run `make figures`")
    chapters = _chapters(found, ROOT / directory, ROOT / executed)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        version=metadata.version("disco-core"),
        commit=_commit(),
        machine=machine(),
        packages=dict(sorted({name: its for one in found for name, its in one["packages"].items()}.items())),
        claims=shown,
        count=claims_table.count(shown),
        known={one["stem"] for one in found},
        chapters=chapters,
        silent=not any(one["printed"] for chapter in chapters for one in chapter["exhibits"]),
    )
    return write_atomic(ROOT / out, page)


def _chapters(found: Iterable[Mapping[str, Any]], folder: Path, executed: Path) -> list[dict[str, Any]]:
    """The exhibits by notebook, in reading order."""
    by_notebook: dict[str, list[Mapping[str, Any]]] = {}
    for one in found:
        by_notebook.setdefault(Path(one["notebook"] or one["stem"]).stem, []).append(one)
    order = [*READING_ORDER, *sorted(set(by_notebook) - set(READING_ORDER))]
    chapters = []
    for stem in (name for name in order if name in by_notebook):
        source = _notebook(ROOT / "notebooks" / f"{stem}.ipynb")
        run = _executed(executed / f"{stem}.ipynb", source, by_notebook[stem])
        shown = [_exhibit(one, folder, source, run) for one in by_notebook[stem]]
        shown.sort(key=lambda one: one["cell"])
        for one, following in itertools.pairwise(shown):  # of one cell: its text once, above; what it printed below
            if one["cell"] == following["cell"]:
                following["told"], one["printed"] = "", ""
                following["beside"] = one["beside"] or one["stem"]
        title, question = _opening(source) or (stem, "")
        chapters.append({"stem": stem, "title": title, "question": question, "exhibits": shown})
    return chapters


def _exhibit(found: Mapping[str, Any], folder: Path, source: list[Any], run: list[Any]) -> dict[str, Any]:
    stem = found["stem"]
    at, told = _told(source, stem)
    return {
        "stem": stem,
        "caption": found["caption"],
        "told": told,
        "beside": "",  # the exhibit of the same cell that its text stands above
        "printed": _printed(run, stem),
        "cell": at,
        "table": _table(folder / f"{stem}.md") if f"{stem}.md" in found["files"] else "",
        "picture": base64.b64encode((folder / f"{stem}.svg").read_bytes()).decode(),
        "origin": origin(found),
        "parameters": found["parameters"],
        "digest": found["digest"],
        "data": sorted(found["data"]),
        "citation": citation(found),
    }


def _table(path: Path) -> str:
    """A table exhibit as HTML; nothing where it is too long to read."""
    text = path.read_text(encoding="utf-8")  # as it was rendered: its digest was compared
    return "" if text.count("\n") > _LONGEST_TABLE else _html(text)


def _notebook(path: Path) -> list[Any]:
    return list(_book(path).get("cells", []))


def _book(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"cells": list(found["cells"]), "metadata": dict(found["metadata"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not a readable notebook: {error}") from None


def _executed(path: Path, source: list[Any], shown: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The cells of an executed notebook; none where it is of another version, or ran with other parameters."""
    book = _book(path)
    run, given = book.get("cells", []), book.get("metadata", {}).get("papermill", {}).get("parameters", {})
    own = [cell for cell in run if "injected-parameters" not in cell["metadata"].get("tags", [])]
    alike = [_text(cell) for cell in own] == [_text(cell) for cell in source]
    asked = ((one["parameters"].get(name, value), value) for one in shown for name, value in given.items())
    return run if alike and all(its == value for its, value in asked) else []


def _opening(source: list[Any]) -> tuple[str, str] | None:
    """Title and question of a notebook: its first heading, and the text under `## Question`."""
    text = "\n".join(_text(cell) for cell in source if cell["cell_type"] == "markdown")
    title, question = re.search(r"^# (.+)$", text, re.M), re.search(r"^## Question\n(.*?)(?=^## )", text, re.M | re.S)
    return (title[1], _html(question[1])) if title and question else None


def _told(source: list[Any], stem: str) -> tuple[int, str]:
    """Which code cell renders an exhibit, and the text before it, without headings."""
    at = _cell(source, stem)
    before = [_text(cell) for cell in source[:at] if cell["cell_type"] == "markdown"] if at < len(source) else []
    return at, _html(re.sub(r"^#.*$", "", before[-1], flags=re.M)) if before else ""


def _printed(run: list[Any], stem: str) -> str:
    at = _cell(run, stem)
    outputs = run[at]["outputs"] if at < len(run) else []
    return "".join(_text(one, "text") for one in outputs if one.get("name") == "stdout").strip()


def _cell(source: list[Any], stem: str) -> int:
    """The code cell that names an exhibit, as "live_cost" or else as f"live_{what}"; past the end if none does."""
    names = [
        re.findall(r'"([a-z][\w{}\[\]]*)"', _text(cell)) if cell["cell_type"] == "code" else [] for cell in source
    ]
    exact = (at for at, found in enumerate(names) if stem in found)
    made = (at for at, found in enumerate(names) if any(re.fullmatch(_pattern(name), stem) for name in found))
    return next(exact, next(made, len(source)))


def _pattern(name: str) -> str:
    return re.sub(r"\\\{.*?\\\}", "[a-z0-9_]+", re.escape(name))


def _text(cell: Mapping[str, Any], key: str = "source") -> str:
    return "".join(cell[key])


def _html(markdown: str) -> str:
    """Markdown as HTML; links to other files of the project lead nowhere from here, so they are text."""
    import mistune

    text = mistune.create_markdown(escape=True, plugins=["table"])(markdown)
    return re.sub(r'<a href="(?!https?:)[^"]*">(.*?)</a>', r"\1", str(text), flags=re.DOTALL)


def _commit() -> str:
    """The commit the report was made at, with a + where something tracked differs from it."""
    asked = [["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
    try:
        commit, changed = (
            subprocess.run(one, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() for one in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return commit + ("+" if changed else "")
