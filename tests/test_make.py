"""`make`: a run that fails is mended and goes on, two at once are one too many, chat stops nothing."""

import fcntl
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from artifact.__main__ import main
from artifact.files import ROOT

PARAMETERS = """\
quick = False  # bool: the small size
out = "figures"  # str: folder"""


def write(path, *cells):
    """A notebook of parameters and the given code."""
    made = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        *map(nbformat.v4.new_code_cell, cells),
    ]
    path.parent.mkdir(exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)


@pytest.fixture(params=["project", "größer als ein Wort"])
def project(tmp_path, request):
    """Makefile and package in a folder of their own, with this environment and two notebooks."""
    folder = tmp_path / request.param
    for name in ("disco_core", "notebooks/artifact", ".ci"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / ".venv" / ".setup").touch()
    for stem in ("one", "two", "chat"):
        write(folder / "notebooks" / f"{stem}.ipynb", "x = 1")
    return folder


def make(project, *words):
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def render(project):
    return make(project, "B=build/try", *(f"build/try/notebooks/{stem}.ipynb" for stem in ("one", "two", "chat")))


def said(done):
    return [line for line in done.stderr.splitlines() if not line.startswith("make")]


@pytest.mark.slow
def test_make_stops_at_a_notebook_that_fails_and_goes_on_from_there(project):
    two = project / "notebooks" / "two.ipynb"
    write(two, "x = 1\nx / 0")
    failed = render(project)
    assert failed.returncode
    assert re.fullmatch(r"one: done in \d+ s", said(failed)[1])
    assert said(failed)[3:] == [
        "two.ipynb: ZeroDivisionError: division by zero",
        "  in the cell `x = 1`; the run so far is in build/try/notebooks/two.failed.ipynb",
    ]
    made = project / "build" / "try" / "notebooks"
    before = (made / "one.ipynb").stat().st_mtime_ns
    assert not (made / "two.ipynb").exists()
    write(two, "x = 1\nx / 1")
    mended = render(project)
    assert mended.returncode == 0, mended.stderr
    assert "one: " not in mended.stderr
    assert re.search(r"^two: done in \d+ s$", mended.stderr, re.MULTILINE)
    assert (made / "one.ipynb").stat().st_mtime_ns == before
    assert sorted(path.name for path in made.glob("*.ipynb")) == ["chat.ipynb", "one.ipynb", "two.ipynb"]
    assert "up to date" in render(project).stdout


@pytest.mark.slow
def test_chat_stops_nothing(project):
    write(project / "notebooks" / "chat.ipynb", "1 / 0")
    done = render(project)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "chat did not run to its end; nothing rests on it"


@pytest.mark.parametrize("target", ["figures", "reproduce", "quick", "reference"])
def test_a_second_make_is_told_in_one_line(project, target):
    (project / "build").mkdir()
    with (project / "build" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = make(project, target)
    assert done.returncode
    assert said(done) == ["another make is at work in build/; wait for it, or stop it"]


def test_the_lock_is_held_as_long_as_the_command_runs(project):
    code = "import subprocess, sys; sys.exit(subprocess.run(['make', 'quick'], stderr=2).returncode)"
    command = [".venv/bin/python", "-m", "artifact", "alone", ".venv/bin/python", "-c", code]
    environment = {"PYTHONPATH": "notebooks", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode
    assert "another make is at work in build/; wait for it, or stop it" in done.stderr


def test_a_command_that_there_is_not_is_told(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err
