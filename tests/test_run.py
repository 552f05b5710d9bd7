"""Notebooks run by name with known parameters only; what fails says so in a line and leaves no half output."""

import ast
import base64
import functools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import nbformat
import pytest

from artifact.__main__ import main
from artifact.errors import ArtifactError
from artifact.files import ROOT, lock
from artifact.publish import parameters, run
from disco_core.errors import InputError

PARAMETERS = """\
budget = 0.3  # float: share of prompt tokens the scarce end may prefill
draws = 10  # int: requests
quick = False  # bool: the small size
out = "figures"  # str: folder
lengths = [1, 2]  # list: prompt lengths
plain = 4"""


@pytest.fixture
def notebook(tmp_path):
    def make(*cells, name="try", declared=PARAMETERS):
        first = nbformat.v4.new_code_cell(declared, metadata={"tags": ["parameters"]})
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
    found = parameters.parameters(notebook())
    assert list(found) == ["budget", "draws", "quick", "out", "lengths", "plain"]
    assert found["budget"] == parameters.Parameter(
        "budget", "float", "0.3", "share of prompt tokens the scarce end may prefill"
    )
    assert found["plain"].type == "int"


def test_text_is_read_as_the_declared_type(notebook):
    given = {"budget": "1", "draws": "7", "quick": "True", "out": "1", "lengths": "[3]", "plain": "5"}
    checked = parameters.check(notebook(), given)
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
        parameters.check(notebook(), {name: value})


def test_an_unknown_parameter_lists_the_known_ones(notebook, capsys):
    assert main(["run", str(notebook()), "--set", "bugdet=0.5"]) == 2
    message = capsys.readouterr().err
    assert "no parameter 'bugdet' (did you mean budget?)" in message
    assert "draws (int, requests); quick (bool, the small size)" in message
    assert message.count("\n") == 1


HARD = """\
query = "a=b"  # str: what is asked, as name=value
page: str | None = None  # str | None: where from; None: from anywhere
depth = 3  # None|int: levels
name: str = 'x == y # no comment'  # which
pair = (
    1,  # the first
    2,
)  # tuple: both"""


def test_defaults_with_an_equals_sign_and_types_with_none_are_read(notebook):
    found = parameters.parameters(notebook(declared=HARD))
    assert [(one.name, one.type, one.default, one.help) for one in found.values()] == [
        ("query", "str", '"a=b"', "what is asked, as name=value"),
        ("page", "str | None", "None", "where from; None: from anywhere"),
        ("depth", "None|int", "3", "levels"),
        ("name", "str", "'x == y # no comment'", "which"),
        ("pair", "tuple", "(1, 2)", "both"),
    ]
    path = notebook(declared=HARD)
    assert parameters.check(path, {"page": "None", "depth": "4"}) == {"page": None, "depth": 4}
    assert parameters.check(path, {"page": "there", "depth": "None"}) == {"page": "there", "depth": None}
    with pytest.raises(InputError, match=r"depth takes a value of type None\|int, not 'deep'"):
        parameters.check(path, {"depth": "deep"})


@pytest.mark.slow
def test_a_notebook_with_such_parameters_runs_and_says_nothing_of_it(notebook, tmp_path, capfd):
    executed = run.run(notebook("print(query, page, depth)", declared=HARD), tmp_path / "out", query="c=d", page=None)
    assert outputs(executed) == "c=d None 3\n"
    assert re.fullmatch(r"try: started\ntry: done in \d+ s\n", capfd.readouterr().err)


def test_a_parameters_cell_that_is_no_python_is_told(notebook, capsys):
    assert main(["run", str(notebook(declared="x = = 1"))]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_common_parameters_are_left_out_where_a_notebook_has_none(notebook, capsys):
    given = {"draws": "3", "nowhere": "1", "source": "tables"}
    assert parameters.common(notebook(), given) == {"draws": "3"}
    assert main(["run", str(notebook()), "--common", "draws=many", "nowhere=1"]) == 2
    assert "parameter draws takes a value of type int" in capsys.readouterr().err
    assert main(["run", str(notebook()), "--common", "nowhere"]) == 2
    assert capsys.readouterr().err == "--common takes name=value, not 'nowhere'\n"


def test_a_setting_without_a_value_is_refused(notebook, capsys):
    assert main(["run", str(notebook()), "--set", "budget"]) == 2
    assert capsys.readouterr().err == "--set takes name=value, not 'budget'\n"


def test_an_unknown_notebook_lists_the_known_ones(capsys):
    assert main(["run", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("no notebook 'nowhere'; notebooks/ has: ")


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x01"])
def test_a_file_that_is_no_notebook_is_named(tmp_path, capsys, content):
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    assert main(["run", str(path), "--out", str(tmp_path)]) == 1
    assert "broken.ipynb is not a readable notebook" in capsys.readouterr().err


def test_params_lists_them_as_the_notebook_does(notebook, capsys):
    assert main(["run", str(notebook()), "--params"]) == 0
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
    assert main(["run", str(notebook("\n1 / 0\nprint()")), "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert told.splitlines() == [
        "try: started",
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
    assert main(["run", str(notebook("1")), "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_the_kernel_and_is_told_in_one_line(notebook, tmp_path):
    mark = tmp_path / "kernel"
    path = notebook(f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(120)")
    command = [sys.executable, "-m", "artifact", "run", str(path), "--out", str(tmp_path / "out")]
    # a shell's background job ignores Ctrl-C, and so would what the tests start if they run in one
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=attend)
    until(lambda: mark.exists() and mark.read_text())
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.splitlines()[0] == "try: started"
    assert told.count("\n") == 2
    assert "interrupted" in told
    assert list((tmp_path / "out").iterdir()) == []
    until(lambda: not alive(int(mark.read_text())))


@pytest.mark.slow
def test_two_runs_into_one_folder_are_one_too_many(notebook, tmp_path, capsys):
    path, out = notebook("1"), tmp_path / "out"
    with lock(out / ".try.running.ipynb", "busy"):
        assert main(["run", str(path), "--out", str(out)]) == 1
        told = capsys.readouterr().err
        assert told == f"try is being run into {out} by another command; wait for it\n"
        assert main(["run", str(path), "--out", str(tmp_path / "other")]) == 0
    assert main(["run", str(path), "--out", str(out)]) == 0
    assert [one.name for one in out.iterdir()] == ["try.ipynb"]


@pytest.mark.slow
def test_a_path_with_spaces_and_umlauts_is_one(notebook, tmp_path):
    out = tmp_path / "mit Leerzeichen und Ümläuten"
    assert run.run(notebook("print('gut')", name="größer als"), out) == out / "größer als.ipynb"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_and_leaves_the_good_copy(notebook, tmp_path, capsys, monkeypatch):
    import papermill.iorw

    def full(*_, **__):
        with open("/dev/full", "w") as file:
            file.write("x")

    out = tmp_path / "out"
    out.mkdir()
    (out / "try.ipynb").write_text("the good one")
    monkeypatch.setattr(papermill.iorw.LocalHandler, "write", full)
    assert main(["run", str(notebook("1")), "--out", str(out)]) == 1
    assert capsys.readouterr().err.splitlines()[1:] == [f"cannot write {out / 'try.ipynb'}: No space left on device"]
    assert [one.read_text() for one in out.iterdir()] == ["the good one"]


SLOW = """\
import sys, time
from tqdm import tqdm
bar = tqdm(total=4, desc="asked", mininterval=0.1)
for number in range(4):
    time.sleep(0.3)
    bar.update()
tqdm.write("a word in between", file=sys.stderr)
bar.close()"""


@pytest.mark.slow
def test_a_log_has_few_lines_and_none_of_a_short_bar(notebook, tmp_path, capfd):
    run.run(notebook(SLOW), tmp_path / "out")
    told = capfd.readouterr().err
    assert re.fullmatch(r"try: started\ntry: a word in between\ntry: done in \d+ s\n", told)


@pytest.mark.slow
def test_a_terminal_shows_how_a_long_cell_moves(notebook, tmp_path):
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [sys.executable, "-m", "artifact", "run", str(notebook(SLOW)), "--out", str(tmp_path / "out")]
    try:
        process = subprocess.Popen(command, cwd=ROOT, stderr=terminal, stdout=subprocess.DEVNULL)
        os.close(terminal)
        told = b""
        while chunk := read(ours):
            told += chunk
        assert process.wait() == 0
    finally:
        os.close(ours)
    shown = told.decode()
    assert {int(of) for of in re.findall(r"try: asked: +(\d+)%", shown)} >= {25, 50, 75}
    assert re.search(r"try: +\d+%.*cell", shown)  # Papermill's own bar
    assert re.search(r"\rtry: a word in between\r?\n|\x1b\[Ktry: a word in between", shown)
    assert shown.count("\n") == 2


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # whoever wrote to it is gone
        return b""


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


@pytest.mark.parametrize("folder", [".", "notebooks"])
@pytest.mark.slow
def test_plain_papermill_runs_a_notebook_from_the_root_and_from_notebooks(tmp_path, folder):
    path = ROOT / "notebooks" / "index.ipynb"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        str(path),
        str(tmp_path / "x.ipynb"),
        "-k",
        "python3",
    ]
    subprocess.run(command, cwd=ROOT / folder, env=environment, check=True, capture_output=True)


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


MAKES = """\
from pathlib import Path
for name in ("try_a.csv", "try_a.json", "try.claims.json"):
    Path(out).mkdir(exist_ok=True)
    (Path(out) / name).write_text(name)"""


@pytest.fixture
def rendered(notebook, tmp_path, monkeypatch):
    """Two notebooks' exhibits, one of them rendered, and beside them files of no notebook."""
    monkeypatch.setattr(run, "BUILD", tmp_path)
    out = tmp_path / "figures"
    out.mkdir()
    for name in ("try_before.csv", "try.claims.json", "another_x.json", "README.md"):
        (out / name).write_text("old")
    return run.render(notebook(MAKES), tmp_path / "executed", out=str(out)), out


@pytest.mark.slow
def test_nothing_is_left_of_an_earlier_rendering(rendered, tmp_path):
    copy, out = rendered
    ours = ["try.claims.json", "try_a.csv", "try_a.json"]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "another_x.json", *ours]
    run.sweep(out, [copy])
    assert sorted(path.name for path in out.iterdir()) == ["README.md", *ours]
    assert copy.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        lambda out: (out / "try_a.csv").write_text("by hand"),
        lambda out: (out / "try_a.csv").unlink(),
        lambda out: (out / "try_left.csv").touch(),
        lambda out: out.rename(out.with_name("elsewhere")),
    ],
)
def test_exhibits_that_are_not_as_they_were_made_are_made_again(rendered, harm):
    copy, out = rendered
    harm(out)
    run.sweep(out, [copy])
    assert not copy.exists()


@pytest.mark.slow
def test_a_notebook_without_exhibits_is_run_once(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "BUILD", tmp_path)
    copy = run.render(notebook(declared="seed = 0"), tmp_path / "executed")
    run.sweep(tmp_path / "figures", [copy])
    assert copy.exists()


def test_exhibits_are_taken_away_below_build_only(notebook, tmp_path):
    (tmp_path / "try_a.csv").write_text("old")
    with pytest.raises(InputError, match="below build/ only"):
        run.render(notebook(), tmp_path, out=str(tmp_path))
    with pytest.raises(InputError, match="below build/ only"):
        run.sweep("figures", ["build/notebooks/none.ipynb"])
    assert (tmp_path / "try_a.csv").exists()
