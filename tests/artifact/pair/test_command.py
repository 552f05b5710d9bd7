"""The command of a pair: what make passes on, and what is printed."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from artifact.errors import ArtifactError
from artifact.files import ROOT
from artifact.pair import command
from disco_core.errors import InputError

SHOW = "from artifact.pair.command import from_make; import json; print(json.dumps(from_make()))"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("flags", [[], ["-s"], ["-k", "-j2"]])
def test_what_is_given_to_make_arrives_as_it_is(tmp_path, flags):
    (tmp_path / "Makefile").write_text(f"pair: ; @{sys.executable} -c '{SHOW}'\n")
    given = {"DEVICE": "a (1) model's.gguf", "MODEL": 'x"y$$z X=1', "SERVER": "http://h/v1", "TOKENS": "", "ODD": "1"}
    words = [f"{name}={value}" for name, value in given.items()]
    done = subprocess.run(
        ["make", *flags, "pair", *words], cwd=tmp_path, capture_output=True, text=True, check=True, env=_environment()
    )
    assert json.loads(done.stdout) == given | {"MODEL": 'x"y$z X=1'}


def test_without_make_there_is_nothing():
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, env=_environment()
    )
    assert done.stdout == "{}\n"


def _environment():
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'notebooks'}", "NAME": "of the machine"}


def test_without_a_setting_the_names_are_listed():
    for given in ({}, {"PYTHON": "python3.12"}):
        with pytest.raises(InputError, match="give SERVER=http://host/v1 or TRACE=file; the names are") as told:
            command.pair(given)
        assert "WATT_HOURS" in str(told.value)


def test_the_study_gets_the_folder_and_its_headline_is_printed(tmp_path, monkeypatch, capsys):
    rows = "".join(f"{k},{20 + k},{0.5 + k / 100}\n" for k in range(12))
    trace = tmp_path / "t.csv"
    trace.write_text(f"arrival_s,prompt_tokens,ttft_s\n{rows}")
    ran = []
    monkeypatch.setattr(command.runner, "run", lambda *where, **given: ran.append((where, given)))
    monkeypatch.setattr(command.parameters, "common", lambda notebook, given: given)
    study = types.ModuleType("artifact.pair.study")
    study.headline = lambda pair: f"{len(pair.requests)} requests studied"
    monkeypatch.setitem(sys.modules, "artifact.pair.study", study)
    command.pair({"TRACE": str(trace), "DEVICE": "80,20", "OUT": str(tmp_path / "out")})
    ((notebook, _), given) = ran[0]
    assert notebook == "your_pair"
    assert Path(given["recorded"]) == tmp_path / "out"
    said = capsys.readouterr().out
    assert "12 requests studied\n" in said
    assert f"{tmp_path / 'out'}.html\n" in said
    assert Path(given["page"]) == tmp_path / "out.html"


def test_a_wrong_file_is_the_readers_line(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("a,b\n1,2\n")
    with pytest.raises(ArtifactError, match="as a csv it lacks the columns"):
        command.pair({"TRACE": str(trace), "DEVICE": "80,20", "OUT": str(tmp_path / "out")})
