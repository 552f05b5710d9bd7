"""Notebooks run by name with known parameters only; what fails says so in a line and leaves no half output."""

import ast
import base64
import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from artifact.errors import ArtifactError
from artifact.files import ROOT
from artifact.publish import progress, run
from disco_core.errors import InputError

PARAMETERS = """\
budget = 0.3  # float: share of prompt tokens the scarce end may prefill
draws = 10  # int: requests
quick = False  # bool: the small size
out = "figures"  # str: folder
lengths = [1, 2]  # list: prompt lengths
plain = 4"""


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "BUILD", tmp_path / "build")


@pytest.fixture
def notebook(tmp_path):
    def make(*cells, name="try"):
        first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        rest = [nbformat.v4.new_code_cell(cell) for cell in cells]
        # a kernel of another name: the runner takes this environment's all the same
        metadata = {"kernelspec": {"name": "nobody", "display_name": "nobody", "language": "python"}}
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[first, *rest], metadata=metadata), path)
        return path

    return make


def outputs(path):
    book = nbformat.read(path, as_version=4)
    return "".join(out.get("text", "") for cell in book.cells if cell.cell_type == "code" for out in cell.outputs)


def test_parameters_are_read_with_type_default_and_meaning(notebook):
    found = run.parameters(notebook())
    assert list(found) == ["budget", "draws", "quick", "out", "lengths", "plain"]
    assert found["budget"] == run.Parameter(
        "budget", "float", "0.3", "share of prompt tokens the scarce end may prefill"
    )
    assert found["plain"].type == "int"


def test_text_is_read_as_the_declared_type(notebook):
    given = {"budget": "1", "draws": "7", "quick": "True", "out": "1", "lengths": "[3]", "plain": "5"}
    checked = run.check(notebook(), given)
    assert checked == {"budget": 1.0, "draws": 7, "quick": True, "out": "1", "lengths": [3], "plain": 5}
    assert isinstance(checked["budget"], float)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("budget", "much"), ("budget", ""), ("budget", True), ("draws", "1.5"), ("draws", 1.5), ("draws", "ten"),
        ("quick", "maybe"), ("quick", 2), ("lengths", "3"), ("lengths", "[1"), ("lengths", "open('x')"), ("out", 3),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_with_the_type(notebook, name, value):
    with pytest.raises(
        InputError,
        match=f"parameter {name} takes a value of type .*, not {value!r}".replace("(", r"\(")
        .replace("[", r"\[")
        .replace(")", r"\)"),
    ):
        run.check(notebook(), {name: value})


def test_an_unknown_parameter_lists_the_known_ones(notebook, capsys):
    assert run.main([str(notebook()), "--set", "bugdet=0.5"]) == 2
    message = capsys.readouterr().err
    assert "no parameter 'bugdet' (did you mean budget?)" in message
    assert "draws (int, requests); quick (bool, the small size)" in message
    assert message.count("\n") == 1


def test_a_setting_without_a_value_is_refused(notebook, capsys):
    assert run.main([str(notebook()), "--set", "budget"]) == 2
    assert capsys.readouterr().err == "--set takes name=value, not 'budget'\n"


def test_an_unknown_notebook_lists_the_known_ones(capsys):
    assert run.main(["nowhere"]) == 2
    assert capsys.readouterr().err.startswith("no notebook 'nowhere'; notebooks/ has: ")


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x01"])
def test_a_file_that_is_no_notebook_is_named(tmp_path, capsys, content):
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    assert run.main([str(path), "--out", str(tmp_path)]) == 1
    assert "broken.ipynb is not a readable notebook" in capsys.readouterr().err


def test_params_lists_them_as_the_notebook_does(notebook, capsys):
    assert run.main([str(notebook()), "--params"]) == 0
    assert "draws = 10  # int: requests" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_keeps_an_executed_copy_and_sees_its_parameters(notebook, tmp_path):
    path = notebook("import os; print(budget, quick, os.getcwd(), os.environ['MPLBACKEND'])")
    executed = run.run(path, tmp_path / "new" / "out", budget=0.5, quick="yes")
    assert executed == tmp_path / "new" / "out" / "try.ipynb"
    assert outputs(executed) == f"0.5 True {ROOT} agg\n"
    assert [one.name for one in executed.parent.iterdir()] == ["try.ipynb"]


@pytest.mark.slow
def test_a_failing_cell_is_told_in_two_lines_and_leaves_the_good_copy(notebook, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "try.ipynb").write_text("the good one")
    assert run.main([str(notebook("\n1 / 0\nprint()")), "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert told.splitlines() == [
        "try: 2 cells",
        "try.ipynb: ZeroDivisionError: division by zero",
        f"  in the cell `1 / 0`; the run so far is in {out / 'try.failed.ipynb'}",
    ]
    assert (out / "try.ipynb").read_text() == "the good one"
    assert "ZeroDivisionError" in (out / "try.failed.ipynb").read_text()
    run.run(notebook("1"), out)
    assert not (out / "try.failed.ipynb").exists()


@pytest.mark.slow
def test_a_dead_kernel_is_told_in_one_line(notebook, tmp_path):
    with pytest.raises(ArtifactError, match="kernel died"):
        run.run(notebook("import os; os._exit(9)"), tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named(notebook, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run.main([str(notebook("1")), "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_the_kernel_and_is_told_in_one_line(notebook, tmp_path):
    mark = tmp_path / "kernel"
    path = notebook(f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(120)")
    command = [sys.executable, "-m", "artifact.publish.run", str(path), "--out", str(tmp_path / "out")]
    # a shell's background job ignores Ctrl-C, and so would what the tests start if they run in one
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=attend)
    until(lambda: mark.exists() and mark.read_text())
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[0] == "try: 2 cells"
    assert told.count("\n") == 2
    assert "interrupted" in told
    assert list((tmp_path / "out").iterdir()) == []
    until(lambda: not alive(int(mark.read_text())))


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.1)


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().split()[2] != "Z"
    except OSError:
        return False


def test_every_notebook_has_documented_parameters_and_no_outputs():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), path.name
        for parameter in run.parameters(path).values():
            assert parameter.help, f"{path.name}: {parameter.name} says no meaning"


def test_a_notebook_shows_a_figure_as_it_was_saved_and_once(notebook, tmp_path):
    first = "import matplotlib.pyplot as plt, pandas as pd\nfrom artifact.publish import figures\nfigures.use_style()"
    about = "caption='c', kind='simulated', source='s', parameters={}, out=out"
    drawn = f"figures.save(plt.subplots()[0], 'try_one', pd.DataFrame({{'x': [1]}}), {about});"
    executed = run.run(notebook(first, drawn), tmp_path / "runs", out=str(tmp_path / "figures"))
    shown = [out for cell in nbformat.read(executed, as_version=4).cells for out in cell.outputs]
    (picture,) = (base64.b64decode(one.data["image/png"]) for one in shown)
    assert picture == (tmp_path / "figures" / "try_one.png").read_bytes()


def test_no_cell_of_a_notebook_ends_with_what_a_call_for_its_effect_returns():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or source.endswith(";") or not (body := ast.parse(source).body):
                continue
            called = getattr(getattr(getattr(body[-1], "value", None), "func", None), "attr", "")
            assert called not in {"save", "save_table", "legend", "set", "plot"}, f"{path.name}: {source[-80:]}"
