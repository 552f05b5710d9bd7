"""How far a notebook is, on a terminal and in a log; and a run through make that fails, is mended and goes on."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from artifact.files import ROOT
from artifact.publish import progress, run

PARAMETERS = """\
quick = False  # bool: the small size
source = "tables"  # str: where from
out = "figures"  # str: folder"""


def write(path, *cells):
    """A notebook of a heading, parameters and the given cells; a text that begins with # is Markdown."""
    made = [
        nbformat.v4.new_markdown_cell("# Try\n\n## Question\nWhat is it?"),
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        *(getattr(nbformat.v4, f"new_{'markdown' if text[0] == '#' else 'code'}_cell")(text) for text in cells),
    ]
    path.parent.mkdir(exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "BUILD", tmp_path / "build")
    return tmp_path / "build"


def test_the_line_tells_step_section_words_and_times():
    told = progress.Progress("dispatch", 12, 40.2)
    cells = [
        {"cell_type": "markdown", "source": "# Dispatch\n\n## Question\nThe *scarce* end\nmay"},
        {"cell_type": "code", "source": "", "metadata": {"tags": ["parameters"]}},
        {"cell_type": "code", "source": "", "metadata": {"tags": ["injected-parameters"]}},
        {"cell_type": "markdown", "source": "## Expect\nMuch.\n\n## Compute\nFirst the mean TTFT over budgets."},
        {"cell_type": "code", "source": "", "metadata": {}},
    ]
    lines = []
    for index, cell in enumerate(cells):
        told.on_cell(cell, index)
        lines.append(told.line(100))
    assert lines[1] == lines[2] == 'dispatch  1 of 12: Question, "The scarce end"  0:00 of about 0:40'
    assert lines[4] == 'dispatch  2 of 12: Compute, "First the mean TTFT over budgets."  0:00 of about 0:40'
    assert told.line(62) == 'dispatch  2 of 12: Compute, "First the m…"  0:00 of about 0:40'
    assert told.line(50) == "dispatch  2 of 12: Compute  0:00 of about 0:40"
    assert all(len(told.line(columns)) <= columns for columns in range(100))
    assert progress.Progress("dispatch", 12, None).line(80) == "dispatch  0 of 12  0:00"
    assert [progress._clock(s) for s in (0.4, 59.7, 61, 3600)] == ["0:00", "1:00", "1:01", "60:00"]


@pytest.mark.slow
def test_a_log_has_a_line_at_the_start_and_one_at_the_end(tmp_path, capsys, build):
    path = write(tmp_path / "try.ipynb", "## Compute\nNothing.", "1")
    for quick in (True, True, False):
        run.run(path, tmp_path / "ran", quick=quick, source="tables", out="elsewhere")
    first, end, second, _, full, _ = capsys.readouterr().err.splitlines()
    assert first == full == "try: 2 cells"
    assert re.fullmatch(r"try: 2 cells in \d+ s", end)
    assert re.fullmatch(r"try: 2 cells, about \d+ s", second)
    assert sorted(json.loads((build / "seconds.json").read_text())) == ["try quick=False", "try quick=True"]


def in_a_terminal(tmp_path, build, makeflags):
    """What a run writes to its terminal."""
    path = write(tmp_path / "try.ipynb", "## Compute\nIt takes a while.", "import time; time.sleep(1.2)")
    build.mkdir()
    (build / "seconds.json").write_text('{"try": 65}')
    out = str(tmp_path / "ran")
    code = (
        "import sys; from pathlib import Path; from artifact.publish import progress, run\n"
        f"progress.BUILD = Path({str(build)!r}); sys.exit(run.main([{str(path)!r}, '--out', {out!r}]))"
    )
    given = {"cwd": ROOT, "env": os.environ | {"MAKEFLAGS": makeflags}, "stdout": subprocess.DEVNULL}
    ours, terminal = pty.openpty()
    try:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=terminal, **given)
        os.close(terminal)
        told = b""
        while chunk := read(ours):
            told += chunk
        assert process.wait() == 0
    finally:
        os.close(ours)
    return told.decode()


@pytest.mark.slow
def test_a_terminal_has_one_line_that_is_kept_up_to_date(tmp_path, build):
    told = in_a_terminal(tmp_path, build, "")
    written = re.split(r"\x1b\[K|\r", told)
    assert 'try  2 of 2: Compute, "It takes a while."' in {line.partition("  0:")[0] for line in written}
    times = [line.partition("  0:")[2] for line in written if "a while" in line]
    assert len(set(times)) > 1
    assert all(re.fullmatch(r"\d\d of about 1:05", time) for time in times)
    assert re.fullmatch(r"try: 2 cells in \d+ s", written[-2] or written[-3])
    assert told.count("\n") == 1


@pytest.mark.slow
def test_of_several_at_a_time_each_has_a_line_a_step(tmp_path, build):
    told = in_a_terminal(tmp_path, build, " -j2 --jobserver-auth=3,4")
    lines = [line.partition("  0:")[0] for line in told.splitlines()]
    steps = ['try  1 of 2: Question, "What is it?"', 'try  2 of 2: Compute, "It takes a while."']
    assert lines[:3] == ["try: 2 cells, about 65 s", *steps]
    assert re.fullmatch(r"try: 2 cells in \d+ s", lines[3])
    assert "\x1b" not in told


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # whoever wrote to it is gone
        return b""


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"dispatch": "long"}', '{"dispatch": null}', "\x00"])
def test_times_that_were_damaged_are_no_times(build, damage, monkeypatch):
    monkeypatch.setattr(progress, "REFERENCE", build / "none.json")
    assert progress.expected_s("dispatch") is None
    build.mkdir()
    (build / "seconds.json").write_text(damage)
    assert progress.expected_s("dispatch") is None
    progress._remember("dispatch", 12.34)
    assert progress.expected_s("dispatch") == 12.3


def test_the_reference_machine_s_times_are_of_notebooks_that_there_are():
    known = progress._read(progress.REFERENCE)
    assert known
    for key, seconds in known.items():
        stem, *given = key.split()
        run.check(stem, dict(pair.split("=") for pair in given))
        assert 0 < seconds < 3600


@pytest.fixture
def project(tmp_path):
    """Makefile and package in a folder of their own, with this environment and two notebooks."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "disco_core", folder / "disco_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name in (".packages", ".setup"):
        (folder / ".venv" / name).touch()
    for stem in ("one", "two"):
        write(folder / "notebooks" / f"{stem}.ipynb", "## Compute\nA cell.", "x = 1")
    return folder


@pytest.mark.slow
def test_make_stops_at_a_notebook_that_fails_and_goes_on_from_there(project):
    def make():
        wanted = [f"build/quick/notebooks/{stem}.ipynb" for stem in ("one", "two")]
        command = ["make", "--no-print-directory", "QUICK=1", "STEMS=one two", *wanted]
        return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)

    two = project / "notebooks" / "two.ipynb"
    write(two, "## Compute\nA cell.", "x = 1\nx / 0")
    failed = make()
    assert failed.returncode
    lines = [line for line in failed.stderr.splitlines() if not line.startswith("make")]
    assert re.fullmatch(r"one: 2 cells in \d+ s", lines[1])
    assert lines[3:] == [
        "two.ipynb: ZeroDivisionError: division by zero",
        "  in the cell `x = 1`; the run so far is in build/quick/notebooks/two.failed.ipynb",
    ]
    made = project / "build" / "quick" / "notebooks"
    before = (made / "one.ipynb").stat().st_mtime_ns
    assert not (made / "two.ipynb").exists()
    write(two, "## Compute\nA cell.", "x = 1\nx / 1")
    mended = make()
    assert mended.returncode == 0, mended.stderr
    assert "one" not in mended.stderr
    assert re.search(r"^two: 2 cells in \d+ s$", mended.stderr, re.MULTILINE)
    assert (made / "one.ipynb").stat().st_mtime_ns == before
    assert sorted(path.name for path in made.glob("*.ipynb")) == ["one.ipynb", "two.ipynb"]
    assert "up to date" in make().stdout
