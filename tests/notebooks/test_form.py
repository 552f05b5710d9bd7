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
