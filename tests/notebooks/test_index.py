"""The index leads to all notebooks and shows all verdicts; what is run by hand leaves committed exhibits alone."""

import json

import nbformat
import pytest

from artifact.files import ROOT
from artifact.publish import claims_table, parameters, run

INDEX = ROOT / "notebooks" / "index.ipynb"
STEMS = sorted({path.stem for path in INDEX.parent.glob("*.ipynb")} - {"index"})


def row(stem):
    """The index's line of a notebook: its name, what it asks, and the exhibits of it that are committed."""
    title = nbformat.read(INDEX.with_name(f"{stem}.ipynb"), as_version=4).cells[0].source.splitlines()[0]
    asks = title.partition(": ")[2]
    found = [path for path in sorted((ROOT / "figures").glob("*.json")) if not path.name.endswith(".claims.json")]
    exhibits = [one.stem for one in found if json.loads(one.read_text())["notebook"] == f"notebooks/{stem}.ipynb"]
    links = ", ".join(f"[{one.removeprefix(f'{stem}_')}](../figures/{one}.svg)" for one in exhibits)
    return f"| [{stem}]({stem}.ipynb) | {asks[:1].upper()}{asks[1:]} | {links or 'none'} |"


def test_the_index_has_a_line_for_every_notebook_and_no_other():
    cells = nbformat.read(INDEX, as_version=4).cells
    lines = [
        line
        for cell in cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if ".ipynb)" in line
    ]
    assert sorted(lines) == [row(stem) for stem in STEMS], "right are the lines that the index should have"


@pytest.mark.slow
def test_the_index_shows_the_verdict_of_every_claim(tmp_path):
    done = nbformat.read(run.run("index", tmp_path), as_version=4)
    printed = "".join(one.text for cell in done.cells if cell.cell_type == "code" for one in cell.outputs)
    assert claims_table.count(claims_table.lines()) in printed


COMMON = {  # parameters that several notebooks have, with what stands in them by hand
    "quick": "True",
    "source": '"tables"',
    "measurements": '"data/measured"',
    "read": '"figures"',
}


@pytest.mark.parametrize("stem", [*STEMS, "index"])
def test_by_hand_a_notebook_leaves_the_committed_exhibits_alone(stem):
    found = {name: one.default for name, one in parameters.parameters(stem).items()}
    assert {name: value for name, value in found.items() if name in COMMON} == {
        name: value for name, value in COMMON.items() if name in found
    }
    if "out" in found and not stem.startswith("measure_"):
        assert found["out"] == ('"build/quick/figures"' if "quick" in found else '"build/by-hand"')
