"""What `pip install .` installs: the scheduler alone, which runs where there is nothing but NumPy."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from artifact.files import ROOT
from tests.helpers import scripts


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what is committed so that nothing is left in the project."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "disco_core", folder / "project" / "disco_core", ignore=ignored)
    shutil.copytree(ROOT / "notebooks", folder / "project" / "notebooks", ignore=ignored)
    shutil.copytree(ROOT / "tests", folder / "project" / "tests", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "project")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "-w", str(folder), str(folder / "project")]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_scheduler_alone(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = [name for name in opened.namelist() if ".dist-info/" not in name]
        code = [opened.read(name) for name in names if name.endswith(".py")]
    assert {Path(name).parts[0] for name in names} == {"disco_core"}
    assert {Path(name).name for name in names if not name.endswith(".py")} == {"py.typed"}
    assert len(code) == len(list((ROOT / "disco_core").rglob("*.py")))
    assert sum(text.count(b"\n") for text in code) < 7400


@pytest.mark.slow
def test_it_plans_and_simulates_with_numpy_alone(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    for path in Path(np.__file__).parents[1].glob("numpy*"):  # and the libraries beside it
        (site / path.name).symlink_to(path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [tmp_path / "venv" / "bin" / "python", "-W", "error", scripts.path("plan_and_simulate.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if not name.startswith("_")}
    assert loaded <= {"disco_core", "numpy", "cython_runtime"}
