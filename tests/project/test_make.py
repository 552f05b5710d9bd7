"""`make`: a run that fails is mended and goes on, two at once are one too many, chat stops nothing."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from artifact.__main__ import main
from artifact.files import ROOT
from tests.helpers import scripts

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
def test_a_second_make_at_once_is_one_line(project, target):
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


def test_an_unknown_command_is_reported(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


@pytest.fixture
def fake(tmp_path):
    """A project whose artifact only notes what it is asked to do, and fails where `broken` says so."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        (tmp_path / "notebooks" / path.name).touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    shutil.copy(scripts.path("fake_artifact.sh"), python)
    python.chmod(0o755)
    (tmp_path / ".venv" / ".setup").touch()
    (tmp_path / "broken").touch()
    return tmp_path


def asked(fake):
    """What the artifact was asked to do, a word of each command, for the notebooks with what they read."""
    lines = [line.split() for line in (fake / "log").read_text().splitlines()]
    return [" ".join(words[:2]) if words[0] != "run" else Path(words[1]).stem for words in lines]


def test_reproduce_measures_renders_twice_and_ends_with_the_verdicts(fake):
    done = make(fake, "reproduce")
    assert (done.returncode, done.stderr) == (0, "")
    words = asked(fake)
    assert words[1:5] == ["measure_device", "measure_live", "measure_pd_device", "measure_overhead"]
    assert words[-3:] == ["report build/figures", "compare build/figures", "claims build/figures"]
    assert (words.count("live"), words.count("summary"), words.count("qoe")) == (2, 2, 1)
    assert sorted(word for word in words if word.startswith("sweep")) == ["sweep build/figures", "sweep build/here"]
    public = make(fake, "reproduce", "TRACES=public")
    assert public.returncode == 0
    assert asked(fake)[-2:] == ["report build/public/figures", "claims build/public/figures"]
    assert "sweep build/public/here" in asked(fake)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("measure_live", "measuring time"),
        ("measure_quality", "measuring quality or rendering the reference"),
        ("live", "measuring quality or rendering the reference, rendering this machine's"),
        ("report", "the report"),
        ("compare", "holding it against figures/"),
        ("claims", "the reference's verdicts"),
    ],
)
def test_whatever_breaks_reproduce_ends_with_the_verdicts_and_says_what_broke(fake, broken, told):
    (fake / "broken").write_text(f"{broken}\n")
    done = make(fake, "reproduce")
    assert done.returncode
    assert f"make reproduce: went wrong (see above): {told}" in done.stderr.splitlines()
    assert asked(fake)[-2:] == ["compare build/figures", "claims build/figures"]
    assert {"measure_overhead", "qoe", "costs"} <= set(asked(fake))


def test_ctrl_c_ends_reproduce_at_once(fake):
    (fake / "slow").touch()
    command = ["make", "reproduce"]
    running = subprocess.Popen(
        command, cwd=fake, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    until = time.monotonic() + 20
    while "measure_live" not in (fake / "log").read_text() if (fake / "log").exists() else True:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    running.communicate(timeout=10)
    assert running.returncode
    assert asked(fake)[-1] == "measure_live"


@pytest.mark.parametrize("broken", ["", "claims", "compare"])
def test_figures_end_with_the_verdicts(fake, broken):
    (fake / "broken").write_text(f"{broken}\n" if broken else "")
    assert bool(make(fake, "figures").returncode) == bool(broken)
    assert (fake / "log").read_text().splitlines()[-2:] == [
        "compare build/figures figures --update",
        "claims figures",
    ]


@pytest.mark.parametrize(
    "name", ["publish/disco.mplstyle", "publish/report.html.jinja", "data/registry.txt", "x/y.py"]
)
def test_what_notebooks_are_made_with_makes_them_anew(fake, name):
    path = fake / "notebooks" / "artifact" / name
    path.parent.mkdir(parents=True)
    path.touch()
    assert make(fake, "figures").returncode == 0
    assert make(fake, "-q", "build/notebooks/qoe.ipynb").returncode == 0
    os.utime(path, (time.time() + 60,) * 2)
    assert make(fake, "-q", "build/notebooks/qoe.ipynb").returncode == 1
