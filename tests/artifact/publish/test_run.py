"""A notebook that is run: what fails says so in a line, and leaves no half output."""

import functools
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from artifact.__main__ import main
from artifact.errors import ArtifactError
from artifact.files import ROOT, lock
from artifact.publish import run
from tests.helpers import scripts
from tests.helpers.notebooks import outputs


@pytest.mark.slow
def test_a_run_keeps_an_executed_copy_and_sees_its_parameters(notebook, tmp_path):
    path = notebook("import os; print(budget, quick, os.getcwd(), os.environ['MPLBACKEND'])")
    executed = run.run(path, tmp_path / "new" / "out", budget=0.5, quick="yes")
    assert executed == tmp_path / "new" / "out" / "try.ipynb"
    assert outputs(executed) == f"0.5 True {ROOT} agg\n"
    assert [one.name for one in executed.parent.iterdir()] == ["try.ipynb"]


@pytest.mark.slow
def test_a_failing_cell_is_two_lines_and_leaves_the_earlier_copy(notebook, tmp_path, capsys):
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
def test_a_dead_kernel_is_one_line(notebook, tmp_path):
    with pytest.raises(ArtifactError, match="kernel died"):
        run.run(notebook("import os; os._exit(9)"), tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named(notebook, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", str(notebook("1")), "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_the_kernel_and_is_one_line(notebook, tmp_path):
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
def test_a_full_disk_is_one_line_and_leaves_the_earlier_copy(notebook, tmp_path, capsys, monkeypatch):
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


@pytest.mark.slow
def test_a_log_has_few_lines_and_none_of_a_short_bar(notebook, tmp_path, capfd):
    run.run(notebook(scripts.text("cell_slow.py")), tmp_path / "out")
    told = capfd.readouterr().err
    assert re.fullmatch(r"try: started\ntry: a word in between\ntry: done in \d+ s\n", told)


@pytest.mark.slow
def test_a_terminal_shows_how_a_long_cell_moves(notebook, tmp_path):
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [
        sys.executable,
        "-m",
        "artifact",
        "run",
        str(notebook(scripts.text("cell_slow.py"))),
        "--out",
        str(tmp_path / "out"),
    ]
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
