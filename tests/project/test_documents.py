"""README, Makefile, environments and licences agree with each other and with the code."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from artifact.files import ROOT
from artifact.publish import compare, gallery

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCUMENTS = ["README.md", "REPRODUCING.md"]


def make(*words, folder=ROOT, **more):
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=False, **more)


def targets():
    return set(re.findall(r"^  make ([a-z-]+) ", make().stdout, re.MULTILINE))


def test_make_alone_lists_every_target():
    expected = "setup reproduce quick test test-all lint bench data lab clean claims"
    assert targets() >= set(expected.split())
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    assert set(phony) - targets() == {"in-figures", "in-reproduce", "in-quick", "in-reference", "render", "force"}


def test_the_makefile_can_be_read():
    lines = (ROOT / "Makefile").read_text().splitlines()
    assert len(lines) <= 94
    assert max(map(len, lines)) <= 130


@pytest.mark.parametrize("document", [*DOCUMENTS, ".ci/run", "data/README.md"])
def test_every_make_command_of_a_document_exists(document):
    named = re.findall(r"(?:`|^\s*|\w )make ([a-z]+[a-z-]*)(?=[ `\n]|$)", (ROOT / document).read_text(), re.MULTILINE)
    named = {name for name in named if name not in ("alone",)}
    assert named
    assert named <= targets()


def test_the_readme_counts_the_exhibits_as_compare_does():
    exhibits = compare.compare("figures", "figures").exhibits
    assert re.findall(r'"(\d+)\sexhibits,\s0\sdiffer"', (ROOT / "README.md").read_text()) == [str(exhibits)]


def test_each_notebook_is_described_with_the_kinds_of_its_exhibits():
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| ", (ROOT / "REPRODUCING.md").read_text(), re.MULTILINE)
    described = {notebook: set(kinds.split(", ")) for notebook, kinds in rows if "measure_" not in notebook}
    kinds: dict[str, set[str]] = {}
    for one in gallery.exhibits():
        kinds.setdefault(Path(one["notebook"]).stem, set()).add(one["kind"])
    assert described == kinds


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
        if not link.startswith("figures/") or (ROOT / "figures").exists():
            assert (ROOT / link).exists(), link


def test_the_readme_s_python_runs(capsys):
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 220
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    lines = re.findall(r"^(\S+(?: only)?) +mean TTFT (\S+) s", printed, re.MULTILINE)
    mean = {name: float(value) for name, value in lines}
    assert mean["DiSCo-D"] < min(mean["server only"], mean["Stoch-D"])
    assert names["result"].cost.mean() < names["result"].cost_without.mean()
    assert names["hedge"].draw([25, 100]).tolist() == [[float("inf"), 0.0], [0.0, 0.5]]


@pytest.mark.slow
def test_the_readme_s_live_answer_is_given(capsys):
    readme = (ROOT / "README.md").read_text()
    (live,) = re.findall(r"```py\n(.*?)```", readme, re.DOTALL)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[:1]:
        exec(block, names)
    exec(live.replace("max_tokens=48", "max_tokens=8"), names)
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert re.fullmatch(r"first token: (SERVER|DEVICE), .*", last)


def test_a_notebook_command_is_understood():
    commands = re.findall(
        r"^    \.venv/bin/python (-m artifact run)",
        (ROOT / "REPRODUCING.md").read_text(),
        re.MULTILINE,
    )
    assert commands
    for command in commands:
        done = subprocess.run([sys.executable, *command.split(), "--help"], cwd=ROOT, capture_output=True, check=True)
        assert b"--set" in done.stdout


@pytest.mark.parametrize(
    ("traces", "told"), [("real", "TRACES=real is not known; it is tables"), ("", "is not known")]
)
def test_an_unknown_choice_of_traces_is_refused(traces, told):
    done = make("reproduce", f"TRACES={traces}")
    assert done.returncode
    assert told in done.stderr


COMPILED = dict.fromkeys(("python3", "cc", "c++"), "exit 0")


@pytest.mark.parametrize(
    ("programs", "told"),
    [
        ({}, "no 'python3' on the PATH; install Python 3.11 or newer"),
        ({"python3": '[ "$1" = -V ] && echo Python 3.9.2; exit 1'}, "Python 3.9.2 is too old"),
        ({"python3": 'case "$2" in *ensurepip*) exit 1;; esac; exit 0'}, "python3 has no venv module"),
        ({"python3": "exit 0"}, "no C and C++ compiler; install one"),
        (COMPILED | {"mkdir": "exit 1"}, "cannot write build/: the disk is full or this folder is read-only"),
        (COMPILED | {"mkdir": "/bin/mkdir -p build/.setup; exit 1"}, "another make is setting up; wait for it"),
    ],
)
def test_setup_says_in_one_line_what_the_machine_lacks(tmp_path, programs, told):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "bin").mkdir()
    for name, script in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    for name in ("make", "sh", "dirname"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / "bin" / name).symlink_to(found)
    environment = {"PATH": str(tmp_path / "bin"), "LC_ALL": "C"}
    done = make("--no-print-directory", "setup", folder=tmp_path, env=environment)
    assert done.returncode
    ours = [line for line in done.stderr.splitlines() if line.startswith("make setup: ")]
    assert len(ours) == 1
    assert told in ours[0]
    assert not (tmp_path / ".venv").exists()


def requirements(lines):
    pairs = [re.fullmatch(r"([A-Za-z0-9_-]+)(?:>=([^,]+)(?:,<.+)?)?", line) for line in lines]
    return {pair[1].lower(): pair[2] for pair in pairs}


def declared():
    groups = PYPROJECT["project"]["optional-dependencies"]
    extras = [groups["artifact"], groups["dev"]]  # what `make setup` installs; the rest is for who wants it
    return requirements([*PYPROJECT["project"]["dependencies"], *[line for extra in extras for line in extra]])


def test_the_conda_environment_has_the_packages_of_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [one["pip"] for one in listed if isinstance(one, dict)]
    conda = requirements([one for one in listed if isinstance(one, str)])
    assert "-e ." in pip
    for tool in ("pip", "make", "cxx-compiler"):
        assert conda.pop(tool, "?") is None
    assert f">={conda.pop('python')}" == PYPROJECT["project"]["requires-python"]
    assert conda | requirements([one for one in pip if one != "-e ."]) == declared()


def test_the_lock_pins_every_package_with_hashes_and_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)(?:\[.+?\])?==(\S+)", lock, re.MULTILINE))
    for name, least in declared().items():
        assert [int(n) for n in pinned[name].split(".")[:2]] >= [int(n) for n in least.split(".")[:2]], name
    assert "://" not in lock
    blocks = re.split(r"^(?=[a-z0-9-]+(?:\[.+?\])?==)", lock, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)


def test_citation_and_licences():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == PYPROJECT["project"]["version"]
    assert {"message", "title", "authors"} <= citation.keys()
    assert {"type", "title", "authors"} <= citation["preferred-citation"].keys()
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert "CC BY 4.0" in (ROOT / "LICENSE-figures").read_text()


def test_nothing_committed_names_a_path_of_this_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".ipynb", ".json", ".toml", ".yml", ".csv", ".svg") and path.exists():
            text = path.read_text(encoding="utf-8")
            assert str(ROOT) not in text, name
            assert str(Path.home()) + "/" not in text or Path.home() == Path("/"), name
