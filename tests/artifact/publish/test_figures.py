"""An exhibit is five whole files or the five earlier ones; a simulated one is the same bytes at every run."""

import hashlib
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from artifact.__main__ import main
from artifact.errors import ArtifactError
from artifact.files import FIGURES, ROOT
from artifact.publish import figures, gallery, provenance
from disco_core.errors import InputError
from tests.helpers import scripts
from tests.helpers.figures import MACHINE, NUMBERS, drawn, measurement, save

SUFFIXES = {".svg", ".pdf", ".png", ".csv", ".json"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_exhibit_is_five_files(tmp_path):
    paths = save(tmp_path / "figures")
    assert {path.suffix for path in paths} == SUFFIXES
    assert all(path.stat().st_size for path in paths)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {path.name for path in paths}
    assert (tmp_path / "figures" / "try_one.csv").read_bytes() == (
        b"budget,ttft_s,n\n0.1,0.333333,1\n0.2,,2000000000\n"
    )


def test_a_simulated_exhibit_is_the_same_bytes_also_in_another_process_and_under_other_settings(tmp_path):
    save(tmp_path / "here")
    with mpl.rc_context({"svg.hashsalt": None, "svg.fonttype": "none", "savefig.dpi": 50}):
        save(tmp_path / "other")
    assert contents(tmp_path / "here") == contents(tmp_path / "other")
    command = [sys.executable, scripts.path("save_figure.py"), str(tmp_path / "there")]
    environment = {
        "PYTHONHASHSEED": "7",
        "SOURCE_DATE_EPOCH": "1",
        "PATH": "",
        "HOME": str(tmp_path),
        "MPLBACKEND": "agg",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'notebooks'}",
    }
    subprocess.run(command, check=True, env=environment)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_a_simulated_exhibit_tells_no_time_machine_or_path(tmp_path):
    save(tmp_path, parameters={"out": tmp_path / "x", "measurements": ROOT / "build" / "m.csv", "b": np.float64(0.5)})
    found = json.loads((tmp_path / "try_one.json").read_text())
    assert found["parameters"] == {"out": "x", "measurements": "build/m.csv", "b": 0.5}
    assert found["kind"] == "simulated"
    assert {"numpy", "scipy", "pandas", "matplotlib", "seaborn"} <= set(found["packages"])
    assert not {"machine", "date"} & found.keys()
    assert str(ROOT) not in (tmp_path / "try_one.json").read_text()


def test_a_measured_exhibit_names_the_machine_and_the_day_of_its_measurement(tmp_path):
    measured = measurement(tmp_path / "device")
    save(tmp_path / "out", kind="measured", data=[], measured=measured)
    found = json.loads((tmp_path / "out" / "try_one.json").read_text())
    assert (found["date"], found["machine"]) == ("2026-01-31", MACHINE)
    assert found["data"] == {"times.csv": "0" * 64}
    with pytest.raises(ArtifactError, match="has no manifest of a measurement"):
        save(tmp_path / "out", kind="measured", measured=tmp_path / "none")
    with pytest.raises(InputError, match="it needs the folder of its measurement"):
        save(tmp_path / "out", kind="measured", measured=None)


def test_an_exhibit_is_cited_by_its_numbers_and_by_nothing_else(tmp_path, monkeypatch):
    save(tmp_path)
    first = json.loads((tmp_path / "try_one.json").read_text())
    assert first["digest"] == "sha256:" + hashlib.sha256((tmp_path / "try_one.csv").read_bytes()).hexdigest()
    save(tmp_path, drawn(shift=1.0), caption="Another.", parameters={"b": 0.4})
    assert json.loads((tmp_path / "try_one.json").read_text())["digest"] == first["digest"]
    monkeypatch.setattr("tests.helpers.figures.NUMBERS", NUMBERS.head(1))
    save(tmp_path)
    assert json.loads((tmp_path / "try_one.json").read_text())["digest"] != first["digest"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"stem": "Try"}, "stem 'Try'"),
        ({"stem": "../try"}, "stem"),
        ({"stem": ""}, "stem"),
        ({"kind": "guessed"}, "simulated, computed, measured"),
        ({"caption": " "}, "a title, a caption and an interpretation"),
        ({"title": ""}, "a title, a caption and an interpretation"),
        ({"interpretation": ""}, "a title, a caption and an interpretation"),
        ({"parameters": {"rng": object()}}, "plain values"),
        ({"out": ""}, "out is ''"),
        ({"out": ROOT}, "a folder of their own"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, more, told):
    with pytest.raises(InputError, match=told):
        save(**{"out": tmp_path / "figures"} | more)
    assert not (tmp_path / "figures").exists()
    assert not list(ROOT.glob("try_one.*"))


def test_a_full_disk_leaves_the_earlier_exhibit(tmp_path, monkeypatch):
    save(tmp_path)
    before = contents(tmp_path)
    real = Path.write_bytes

    def full(path, content):
        if path.suffix == ".csv":
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match=r"cannot write try_one\.svg.*No space left on device; free space"):
        save(tmp_path, drawn(shift=1.0))
    assert contents(tmp_path) == before


def test_an_interrupt_leaves_the_earlier_exhibit(tmp_path, monkeypatch):
    save(tmp_path)
    before = contents(tmp_path)

    def interrupted(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, drawn(shift=1.0))
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"Not a directory|File exists"):
        save(tmp_path / "file")


def test_every_policy_has_one_colour():
    assert figures.colour("DiSCo-D") == figures.colour("DiSCo-S") == figures.colour("DiSCo")
    assert figures.colour("Stoch-S+") == figures.colour("Stoch-D+") != figures.colour("Stoch-D")
    assert figures.colour("cloud only") == figures.colour("server only")  # P/D-Device's word for it
    assert len(set(figures.POLICIES.values())) == len(figures.POLICIES) - 1
    with pytest.raises(InputError, match="no colour for policy 'Disco'"):
        figures.colour("Disco")


TABLE = pd.DataFrame({"service": ["gpt_4", "a|b"], "cut (%)": [23.8512, np.nan], "n": [3, 4]})


def save_table(out, table=TABLE, **more):
    about = {"title": "Cuts", "caption": "A table.", "interpretation": "Shows cuts.", "source": "committed tables"}
    about |= {"kind": "simulated", "parameters": {}, "out": out}
    return figures.save_table(table, "try_table", **about | more)


def test_a_table_is_csv_markdown_and_latex(tmp_path):
    paths = save_table(tmp_path)
    assert sorted(path.suffix for path in paths) == [".csv", ".json", ".md", ".tex"]
    markdown = (tmp_path / "try_table.md").read_text().splitlines()
    assert [cell.strip() for cell in markdown[2].split("|")[1:-1]] == ["gpt_4", "23.9", "3"]
    assert r"a\|b" in markdown[3]
    assert "–" in markdown[3]
    latex = (tmp_path / "try_table.tex").read_text()
    for part in (
        r"\usepackage{booktabs,graphicx}",
        r"\caption{Cuts. A table.}",
        r"\label{tab:try-table}",
        r"gpt\_4 & 23.9",
    ):
        assert part in latex
    assert r"\begin{table}[t]" in latex  # in one column
    assert (tmp_path / "try_table.csv").read_text().splitlines()[1] == "gpt_4,23.8512,3"
    with pytest.raises(InputError, match="at least one row"):
        save_table(tmp_path, TABLE.iloc[:0])


@pytest.mark.parametrize(
    ("columns", "environment", "broken"), [(3, "table", 0), (12, "table*", 0), (1, "table", 0), (3, "table*", 1)]
)
def test_a_latex_table_fits_a_column_or_the_page(tmp_path, columns, environment, broken):
    table = pd.DataFrame({f"name {k}": ["some text"] for k in range(columns)})
    if broken:
        table["why"] = "words " * 30
    save_table(tmp_path, table)
    latex = (tmp_path / "try_table.tex").read_text()
    assert rf"\begin{{{environment}}}[t]" in latex
    assert rf"\end{{{environment}}}" in latex
    assert latex.count(r"\linewidth}") == broken  # a column that breaks its lines
    assert r"\resizebox{\ifdim\width>\linewidth" in latex


def test_seaborn_draws_a_policy_as_matplotlib_does():
    look = figures.look(["DiSCo-D", "Stoch-D+", "server only"], marker=True)
    assert look["palette"]["DiSCo-D"] == figures.colour("DiSCo")
    assert look["hue_order"] == look["style_order"] == ["DiSCo-D", "Stoch-D+", "server only"]
    assert look["dashes"]["DiSCo-D"] == ""
    assert len(set(map(str, look["dashes"].values()))) == 3
    with pytest.raises(InputError, match="no colour for policy"):
        figures.look(["Disco"])


def test_the_style_is_the_sheet_s():
    with mpl.rc_context():
        figures.use_style()
        assert mpl.rcParams["figure.figsize"] == [3.33, 2.3]
        assert mpl.rcParams["font.size"] >= 7
        assert mpl.rcParams["svg.hashsalt"] == "disco"


def test_the_gallery_shows_every_exhibit(tmp_path, capsys):
    save(tmp_path)
    save(tmp_path, stem="another", kind="measured")
    (tmp_path / "another.claims.json").write_text("[]")
    assert main(["gallery", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.index("`another`: ") < text.index("`try_one`: ")
    assert '<a id="try_one"></a>\n\n### A line\n\n![A line](try_one.svg)' in text
    assert "Simulated, from committed tables. [svg](try_one.svg)" in text
    bibliography = (tmp_path / "exhibits.bib").read_text()
    keys = re.findall(r"^@\w+\{(.+),$", bibliography, re.MULTILINE)
    assert keys == ["disco-core", "sun2025", "jin2025", "yin2025", "disco-core:another", "disco-core:try_one"]
    assert "Measured on " in text
    assert f"> disco-core {metadata.version('disco-core')}, exhibit `try_one`, sha256:" in text
    gallery.gallery(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    (tmp_path / "try_one.pdf").unlink()
    assert main(["gallery", str(tmp_path)]) == 1
    assert "exhibit try_one has no try_one.pdf" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".svg", ".csv"])
@pytest.mark.parametrize("content", ["", "other"])
def test_a_file_that_was_changed_since_is_reported(tmp_path, suffix, content):
    save(tmp_path)
    (tmp_path / f"try_one{suffix}").write_text(content)
    with pytest.raises(ArtifactError, match=rf"try_one\{suffix} is not what was rendered"):
        gallery.exhibits(tmp_path)


@pytest.mark.parametrize("kind", ["simulated", "measured"])
def test_provenance_of_another_shape_is_reported_whatever_it_is(tmp_path, kind):
    save(tmp_path, kind=kind)
    path = tmp_path / "try_one.json"
    whole = json.loads(path.read_text())
    for name in whole:
        for wrong in (None, 5, [], "x", {}):
            if type(wrong) is type(whole[name]) or (name == "notebook" and wrong in (None, "x")):
                continue
            path.write_text(json.dumps(whole | {name: wrong}))
            with pytest.raises(ArtifactError, match=r"try_one\.json is not the provenance"):
                gallery.exhibits(tmp_path)
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(ArtifactError, match=r"try_one\.json is not the provenance"):
            gallery.exhibits(tmp_path)


def test_a_gallery_of_nothing_or_of_a_broken_file_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"no exhibit in .*make figures"):
        gallery.gallery(tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"x\.json is not the provenance"):
        gallery.gallery(tmp_path)


@pytest.mark.parametrize(
    ("stem", "notebook"),
    [("pd_device_live", "pd_device"), ("dispatch_d4", "dispatch"), ("chat", "chat"), ("none_such", "none")],
)
def test_an_exhibit_knows_the_notebook_that_made_it(stem, notebook):
    assert provenance.notebook(stem) == ROOT / "notebooks" / f"{notebook}.ipynb"


def test_every_committed_latex_table_is_ascii_and_names_what_it_needs():
    for path in sorted(FIGURES.glob("*.tex")):
        text = path.read_text(encoding="utf-8")
        assert text.isascii(), path.name
        assert text.startswith(r"% needs \usepackage{booktabs,graphicx}; cite with \cite{disco-core:"), path.name


def test_what_rounding_leaves_of_a_difference_is_written_as_0(tmp_path):
    table = pd.DataFrame({"share": [0.1 + 0.2 - 0.3, -1e-17, 0.25], "none": [1e-17, 0.0, -1e-16]})
    table = table.assign(price=[1.5e-7, 6e-7, 1e-9], text="a", n=[1, 2, 3])
    saved = {"kind": "computed", "source": "a test", "parameters": {}, "data": (), "out": tmp_path}
    figures.save_table(table, "try_rounding", title="A title", caption="A caption.", interpretation="None.", **saved)
    read = pd.read_csv(tmp_path / "try_rounding.csv")
    assert read["share"].tolist() == [0, 0, 0.25]
    assert read["none"].tolist() == [0, 0, 0]
    assert read["price"].tolist() == [1.5e-7, 6e-7, 1e-9]
