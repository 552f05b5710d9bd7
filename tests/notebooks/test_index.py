"""The index leads to all notebooks and shows all verdicts; what is run by hand leaves committed exhibits alone."""

import re

import nbformat
import pytest

from artifact.files import ROOT
from artifact.publish import claims_table, parameters, run

INDEX = ROOT / "notebooks" / "index.ipynb"
STEMS = sorted({path.stem for path in INDEX.parent.glob("*.ipynb")} - {"index"})


def row(stem):
    """The index's line of a notebook: its name and its question."""
    title = nbformat.read(INDEX.with_name(f"{stem}.ipynb"), as_version=4).cells[0].source.splitlines()[0]
    question = title.partition(": ")[2]
    return f"| [{stem}]({stem}.ipynb) | {question[:1].upper()}{question[1:]} |"


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
def test_the_index_shows_the_verdict_of_every_claim_and_its_links_lead_to_files(tmp_path):
    done = nbformat.read(run.run("index", tmp_path), as_version=4)
    outputs = [one for cell in done.cells if cell.cell_type == "code" for one in cell.outputs]
    assert claims_table.count(claims_table.lines()) in "".join(one.get("text", "") for one in outputs)
    (exhibits,) = (one.data["text/markdown"] for one in outputs if "text/markdown" in one.get("data", {}))
    texts = [exhibits, *(cell.source for cell in done.cells if cell.cell_type == "markdown")]
    links = [link for text in texts for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert len([link for link in links if link.startswith("../figures/")]) > 50
    assert [link for link in links if not (INDEX.parent / link).exists()] in ([], ["../build/report.html"])


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
