"""Notebooks keep their form: parameters, headings, cells, and a first cell that says where to start them."""

import ast
import json
import os
import subprocess
import sys

import nbformat
import pytest

from artifact.files import ROOT
from artifact.publish import parameters

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_from_elsewhere_the_first_cell_says_in_one_line_what_to_do(path, tmp_path, monkeypatch):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    first = next(cell.source for cell in code if "parameters" not in cell.metadata.get("tags", []))
    setup = first[: first.index("raise SystemExit")].splitlines()
    assert setup[:3] == ["import sys", "", setup[2]]
    assert setup[2].startswith('sys.path.insert(0, "notebooks")')
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", first], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    told = "artifact is not found: start this notebook in the project's root or in notebooks/\n"
    assert (done.stderr, done.stdout) == (told, "")


def test_every_notebook_has_documented_parameters_and_no_outputs():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), path.name
        for parameter in parameters.parameters(path).values():
            assert parameter.help, f"{path.name}: {parameter.name} says no meaning"


def test_no_cell_of_a_notebook_ends_with_what_a_call_for_its_effect_returns():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or source.endswith(";") or not (body := ast.parse(source).body):
                continue
            called = getattr(getattr(getattr(body[-1], "value", None), "func", None), "attr", "")
            assert called not in {"save", "save_table", "legend", "set", "plot"}, f"{path.name}: {source[-80:]}"


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != "index"], ids=lambda path: path.stem)
def test_notebooks_keep_their_form(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.outputs or cell.execution_count for cell in code)
    computing = [cell.source for cell in code if "start this notebook in the project's root" not in cell.source]
    assert 5 <= len(computing) <= 12
    for source in computing:  # apart from imports
        assert len([line for line in source.splitlines() if line and not line.startswith(("import", "from"))]) <= 25
    headings = [line[3:] for source in text for line in source.splitlines() if line.startswith("## ")]
    assert headings == ["Question", "Design", "Expect", "Compute", "Check"]
    parameters = next(cell.source for cell in code if "parameters" in cell.metadata.get("tags", []))
    assert all("  # " in line and ": " in line.split("  # ")[1] for line in parameters.splitlines())
