"""Verdicts: the rule decides from the number, every id stands once, and nothing unfinished passes."""

import json
import math

import pytest

from artifact.__main__ import main
from artifact.errors import ArtifactError
from artifact.files import ROOT
from artifact.measure import store
from artifact.publish import claims, claims_table
from disco_core.errors import InputError
from tests.helpers.measuring import defaults

HEAD = "id,source,mark,statement,kind,paper,tolerance,better,rule,expected,exhibit\n"
ROWS = """\
B1,paper,P,a band,band,11..52,2,higher,median within,PASS,dispatch
B2,paper,N,one number,band,23.85,0.1,lower,median within,DIFFERS,dispatch
L1,paper,P,at least,at least,60,5,higher,median,PASS,dispatch
M1,paper,P,at most,at most,10,,,median,PASS,dispatch
T1,paper,P,a trend,trend,goes up,0,,sign test p < 0.05,PASS,dispatch
T10,paper,R,cannot be tested,trend,no loss,0,,needs three judges and their keys,NOT TESTED,
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "claims.csv"
    path.write_text(HEAD + ROWS)
    return path


@pytest.fixture
def decide(table, tmp_path):
    def decide(id, ours, stem="dispatch", **more):
        return claims.check(id, ours, stem=stem, out=tmp_path / "figures", table=table, **more)

    return decide


@pytest.mark.parametrize(
    ("id", "ours", "place"),
    [
        ("B1", 30, "inside the range"), ("B1", 10, "within the tolerance"), ("B1", 54, "within the tolerance"),
        ("B1", 8, "beyond, worse"), ("B1", 60, "beyond, better"),
        ("B2", 23.85, "the same value"), ("B2", 23.9, "within the tolerance"), ("B2", 20, "beyond, better"),
        ("B2", 30, "beyond, worse"),
        ("M1", 5, ""), ("T1", 5, ""),
    ],
)  # fmt: skip
def test_where_our_value_lies_against_the_paper_s(table, id, ours, place):
    assert claims.load(table)[id].place(ours) == place


def test_the_reading_that_favours_the_baseline_is_shown_and_not_judged(decide, table, tmp_path):
    verdict = decide("B1", [30, 40], favourable=[-5, -6])
    assert verdict["verdict"] == "PASS"
    assert verdict["ours"]["favourable"] == "-5.5 (median of 2; -6 to -5)"
    (line,) = (one for one in claims_table.lines(tmp_path / "figures", table) if one.id == "B1")
    assert "against Stoch+ -5.5 (median of 2" in claims_table.markdown([line])
    frame = claims_table.shown([verdict], table)
    assert frame.place.tolist() == ["inside the range"]


@pytest.mark.parametrize(
    ("id", "ours", "verdict"),
    [
        ("B1", 9, "PASS"), ("B1", 54, "PASS"), ("B1", 8.99, "DIFFERS"), ("B1", 54.01, "DIFFERS"),
        ("B1", [0, 30, 400], "PASS"), ("B1", [90, 90, 30], "DIFFERS"), ("B1", -30, "DIFFERS"),
        ("B2", 23.95, "PASS"), ("B2", 23.75, "PASS"), ("B2", 24, "DIFFERS"),
        ("L1", 55, "PASS"), ("L1", 1e6, "PASS"), ("L1", 54.9, "DIFFERS"),
        ("M1", 10, "PASS"), ("M1", -5, "PASS"), ("M1", 10.1, "DIFFERS"),
        ("T1", [1] * 5, "PASS"), ("T1", [1] * 4, "DIFFERS"), ("T1", [1] * 5 + [0] * 9, "PASS"),
        ("T1", [-1] * 9, "DIFFERS"), ("T1", [0, 0], "DIFFERS"), ("T1", 3, "DIFFERS"),
    ],
)  # fmt: skip
def test_the_rule_decides(decide, id, ours, verdict):
    found = decide(id, ours)
    assert found["verdict"] == verdict
    assert bool(found["reason"]) == (verdict == "DIFFERS" or "tolerance" in found["reason"])
    assert set(found) == {"id", "verdict", "paper", "ours", "rule", "exhibit", "reason"}


@pytest.mark.parametrize("ours", [[], math.nan, math.inf, [1, -math.inf], [30, math.nan]])
@pytest.mark.parametrize("id", ["B1", "T1"])
def test_no_number_never_passes(decide, tmp_path, id, ours):
    with pytest.raises(InputError, match=rf"claim {id}: .*(no value|nan|inf).*finite"):
        decide(id, ours)
    assert not (tmp_path / "figures").exists()


def test_an_unknown_or_untestable_claim_is_refused(decide):
    with pytest.raises(InputError, match="no claim 'B9'; the table has B1, B2"):
        decide("B9", 1)
    with pytest.raises(InputError, match="T10"):
        decide("T10", [1, 1])


def test_a_reason_stands_beside_what_the_numbers_say(decide):
    assert decide("B1", 60, reason="another device")["reason"] == "60 is above 54; another device"
    assert decide("T1", [1, -1])["reason"].startswith("sign test p = 0.75, not below 0.05")


def test_files_are_sorted_replaced_and_the_same_bytes(decide, tmp_path):
    decide("T1", [1] * 8)
    decide("B1", 1 / 3)
    first = decide("B1", [30.00000001, 30])
    path = tmp_path / "figures" / "dispatch.claims.json"
    written = path.read_bytes()
    assert [one["id"] for one in json.loads(written)] == ["B1", "T1"]
    assert first["ours"] == {"median": 30.0, "text": "30 (median of 2; 30 to 30)"}
    decide("B1", [30.00000002, 30])
    assert path.read_bytes() == written


def test_the_table_shows_what_is_missing_and_what_is_not_as_expected(decide, table, tmp_path):
    decide("B1", 30)
    decide("B2", 40)
    decide("L1", 1)
    shown = claims_table.lines(tmp_path / "figures", table)
    text = claims_table.text(shown)
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "DIFFERS (expected PASS)" in rows["L1"]
    assert "DIFFERS (expected" not in rows["B2"]
    assert "MISSING (expected PASS)" in rows["T1"]
    assert "NOT TESTED" in rows["T10"]
    assert "T10: needs three judges and their keys" in text
    assert text.endswith("6 claims: 1 PASS, 2 DIFFERS, 1 NOT TESTED, 2 MISSING; not as expected: L1, M1, T1")
    assert max(map(len, text.splitlines())) <= 110


def test_the_command_fails_until_every_verdict_is_the_expected_one(decide, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "TABLE", table)
    folder = str(tmp_path / "figures")
    assert main(["claims", folder]) == 1
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "dispatch.json").write_text("{}")
    for id, ours in (("B1", 30), ("B2", 40), ("L1", 70), ("M1", 1), ("T1", [1] * 6)):
        decide(id, ours)
    assert main(["claims", folder]) == 0
    assert "every verdict is the expected one" in capsys.readouterr().out
    claims.not_tested("B1", "a key", stem="dispatch", out=folder, table=table)
    assert main(["claims", folder]) == 1
    with pytest.raises(InputError, match="say what is missing"):
        claims.not_tested("T10", " ", stem="dispatch", out=folder, table=table)


def test_an_exhibit_that_no_notebook_renders_is_reported(decide, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "TABLE", table)
    for id, ours in (("B1", 30), ("B2", 40), ("L1", 70), ("M1", 1), ("T1", [1] * 6)):
        decide(id, ours)
    assert main(["claims", str(tmp_path / "figures")]) == 1
    assert "is called 'dispatch' (B1, B2, L1, M1, T1)" in capsys.readouterr().out


def test_in_small_no_verdict_decides(decide, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "TABLE", table)
    for id, ours in (("B1", 30), ("B2", 40), ("L1", 10), ("M1", 1), ("T1", [1] * 6)):
        decide(id, ours)
    assert main(["claims", str(tmp_path / "figures"), "--quick"]) == 0
    assert "This was the quick size" in capsys.readouterr().out
    assert main(["claims", str(tmp_path / "figures")]) == 1
    assert "not as expected: L1" in capsys.readouterr().out


def measurement(disturbed="", **changed):
    """A measurement of live answers with the default settings, some of them changed."""
    settings = {name: value for name, value in defaults("measure_live").items() if name != "out"} | {"quick": False}
    manifest = {"name": "live", "settings": settings | changed, "disturbed": disturbed}
    return store.Measured(ROOT, manifest, {})


def test_a_claim_on_a_disturbed_measurement_is_not_tested(decide):
    still, busy = measurement(), measurement("other programs took 1.5 cores")
    assert decide("L1", 70, measured=still)["verdict"] == "PASS"
    for measured in (busy, [still, busy]):
        for ours in (70, math.nan):  # a busy machine may leave nothing to judge
            found = decide("L1", ours, measured=measured)
            assert (found["verdict"], found["ours"]) == ("NOT TESTED", None)
            assert found["reason"] == "other programs took 1.5 cores"
    for ours in (math.nan, [], [1, math.nan]):
        assert "holds no value" in decide("L1", ours, measured=still)["reason"]
    with pytest.raises(InputError, match="finite"):
        decide("L1", math.inf, measured=still)


def test_a_claim_on_other_settings_than_its_rule_s_is_not_tested(decide):
    assert decide("L1", 70, measured=measurement(server="openai:a"))["verdict"] == "PASS"
    found = decide("L1", 70, measured=measurement(budget=0.3, prompts=3))
    assert found["verdict"] == "NOT TESTED"
    assert found["reason"] == "measured with budget=0.3, prompts=3, not with the defaults of measure_live"
    assert "quick size" in decide("L1", 70, measured=measurement(quick=True))["reason"]


def test_this_machine_s_value_stands_beside_and_decides_nothing(decide, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "TABLE", table)
    table.write_text(
        table.read_text().replace(
            "L1,paper,P,at least,at least,60,5,higher,median,PASS,dispatch",
            "L1,paper,P,at least,at least,60,5,higher,median,PASS,live",
        )
    )
    reference, here = tmp_path / "figures", tmp_path / "here"
    for id, ours in (("B1", 30), ("B2", 40), ("L1", 70), ("M1", 1), ("T1", [1] * 6)):
        decide(id, ours, stem="live" if id == "L1" else "dispatch")
    for stem, kind in (("dispatch", "simulated"), ("live", "measured")):
        (reference / f"{stem}.json").write_text(json.dumps({"kind": kind}))

    def beside():
        return {one.id: one.here for one in claims_table.lines(reference, here=here)}

    claims.check("L1", 10, stem="live", out=here, table=table)
    assert beside() == {"B1": "same", "B2": "same", "L1": "10 DIFFERS", "M1": "same", "T1": "same", "T10": "-"}
    assert main(["claims", str(reference), "--here", str(here)]) == 0
    text = capsys.readouterr().out
    assert [name for name in text.splitlines()[0].split() if name in ("reference", "here")] == ["reference", "here"]
    assert "every verdict is the expected one" in text
    claims.check("L1", 80, stem="live", out=here, table=table)
    assert beside()["L1"] == "80"
    busy = measurement("the machine was busy")
    claims.check("L1", 80, stem="live", out=here, table=table, measured=busy)
    assert beside()["L1"] == "NOT TESTED"
    claims.check(
        "B1", 31, stem="dispatch", out=here, table=table
    )  # a simulated exhibit, but what it says is measured
    assert beside()["B1"] == "31"
    claims.check("B1", 30, stem="dispatch", out=here, table=table)
    assert beside()["B1"] == "same"
    assert main(["claims", str(reference), "--here", str(here)]) == 0
    assert "\nhere: L1: the machine was busy\n" in capsys.readouterr().out
    (here / "live.claims.json").unlink()
    assert beside()["L1"] == "MISSING"


def test_verdicts_that_a_folder_lacks_are_taken_from_the_rest(decide, table, tmp_path):
    decide("B1", 30)
    claims.check("B2", 40, stem="dispatch", out=tmp_path / "here", table=table)
    found = claims.verdicts(tmp_path / "here", table, rest=tmp_path / "figures")
    assert [found[id]["verdict"] for id in ("B1", "B2", "L1")] == ["PASS", "DIFFERS", "MISSING"]


def test_an_id_in_two_files_or_unknown_to_the_table_is_an_error(decide, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "TABLE", table)
    decide("B1", 30)
    decide("B1", 30, stem="traces")
    with pytest.raises(ArtifactError, match=r"B1 .*dispatch\.claims\.json and in traces\.claims\.json"):
        claims_table.lines(tmp_path / "figures")
    assert main(["claims", str(tmp_path / "figures")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "figures" / "traces.claims.json").write_text(
        '[{"id": "X", "verdict": "PASS", "ours": {"text": "1", "median": 1}, "reason": ""}]'
    )
    with pytest.raises(ArtifactError, match=r"traces\.claims\.json judges 'X'"):
        claims_table.lines(tmp_path / "figures")


@pytest.mark.parametrize(
    ("cell", "other", "told"),
    [
        ("11..52,2", "11..29,0", "paper"),
        ("0.1,lower,median within", "7,lower,median within", "kind or tolerance"),
        ("at least,60", "at most,60", "kind or tolerance"),
        ("2,higher,median within", "2,higher,mean within", "rule"),
        ("dispatch\nM1", "tail\nM1", "exhibit"),
    ],
)
def test_a_verdict_by_another_rule_than_the_table_s_is_none(decide, table, tmp_path, cell, other, told):
    for id, ours in {"B1": 30, "B2": 30, "L1": 100}.items():
        decide(id, ours)
    assert [one.verdict for one in claims_table.lines(tmp_path / "figures", table)[:3]] == ["PASS", "DIFFERS", "PASS"]
    table.write_text(table.read_text().replace(cell, other))
    (changed,) = (
        one for one in claims_table.lines(tmp_path / "figures", table) if f"another {told} than" in one.reason
    )
    assert changed.verdict == "MISSING"
    assert changed.ours == "-"


def test_a_table_that_a_spreadsheet_wrote_is_read(table):
    before = repr(claims.load(table))  # a row without a number holds nan, which equals nothing
    table.write_text("\ufeff" + table.read_text().replace("\n", "\r\n"))
    assert repr(claims.load(table)) == before


def test_a_missing_folder_is_reported(table, tmp_path):
    with pytest.raises(ArtifactError, match=r"no folder .*none.*make figures"):
        claims_table.lines(tmp_path / "none", table)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "{}", "3", "[1]", '[{"id": 1}]', '{"id": "B1"}', '[{"id": "B1", "verdict": "PASS"}]'),
        '[{"id": "B1", "verdict": "PASS", "ours": "54", "reason": ""}]',
        '[{"id": "B1", "verdict": "PASS", "ours": null, "reason": ""}]',
        '[{"id": "B1", "verdict": "PASS", "ours": {"text": 5, "median": 5}, "reason": ""}]',
        '[{"id": "B1", "verdict": "PASS", "ours": {"text": "5"}, "reason": ""}]',
        '[{"id": "B1", "verdict": "PASS", "ours": {"text": "5", "median": 5}, "reason": 5}]',
        '[{"id": "B1", "verdict": "GOOD", "ours": {"text": "5", "median": 5}, "reason": ""}]',
    ],
)
def test_a_broken_claims_file_is_named(decide, table, tmp_path, content):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "dispatch.claims.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"dispatch\.claims\.json is not a list of verdicts"):
        decide("B1", 30)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("B1,s,P,x,band,11..52,2,,r,PASS,e", "listed twice"),
        ("X,s,P,x,bend,11,2,,r,PASS,e", "kind is 'bend', allowed are band, at least"),
        ("X,s,Q,x,band,11,2,,r,PASS,e", "mark is 'Q'"),
        ("X,s,P,x,band,11,2,more,r,PASS,e", "better is 'more', allowed are higher, lower"),
        ("X,s,P,x,band,11,2,,r,pass,e", "expected is 'pass'"),
        ("X,s,P,x,band,eleven,2,,r,PASS,e", "paper is 'eleven'"),
        ("X,s,P,x,band,52..11,2,,r,PASS,e", r"paper is '52\.\.11'"),
        ("X,s,P,x,band,nan,2,,r,PASS,e", "paper is 'nan'"),
        ("X,s,P,x,band,11,-1,,r,PASS,e", "tolerance is '-1'"),
        ("X,s,P,x,band,11,wide,,r,PASS,e", "tolerance is 'wide'"),
        ("X,s,P,x,band,inf,1,,r,PASS,e", "paper is 'inf'"),
        (",s,P,x,band,11,1,,r,PASS,e", "id is empty"),
        ("X,s,P,,band,11,1,,r,PASS,e", "statement is empty"),
        ("X,s,P,x,band,11,1,,r,PASS,e,more", "a field, or the table a column, too many"),
        ("X,s,P,x,trend,up,0,,looks right,PASS,e", "sign test p < 0.05"),
        ("X,s,P,x,band,11", "it has no tolerance, better, rule, expected, exhibit; the columns are"),
    ],
)
def test_a_bad_row_of_the_table_is_named(tmp_path, row, told):
    path = tmp_path / "claims.csv"
    path.write_text(HEAD + ROWS + row + "\n")
    with pytest.raises(ArtifactError, match=f"line 8.*{told}"):
        claims.load(path)


def test_a_missing_table_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "TABLE", tmp_path / "none.csv")
    assert main(["claims", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_committed_table_is_sound():
    assert claims.load()


def test_an_empty_table_is_no_success(tmp_path):
    empty = tmp_path / "claims.csv"
    empty.write_text("")
    with pytest.raises(ArtifactError, match="no claim"):
        claims.load(empty)
