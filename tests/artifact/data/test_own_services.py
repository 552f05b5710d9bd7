"""Services of one's own: read when asked for by name, refused in one line, and without effect otherwise."""

import json

import numpy as np
import pandas as pd
import pytest

from artifact.data import own_services, traces
from artifact.errors import ArtifactError
from artifact.files import ROOT
from artifact.publish.run import run
from disco_core.errors import DiscoError, InputError

TTFT_S = np.random.default_rng(0).lognormal(-1, 0.8, 120).round(4)
OUT = "build/mine"


def write(path, ttft_s=TTFT_S):
    rows = {"arrival_s": 2.0 * np.arange(len(ttft_s)), "prompt_tokens": 20, "ttft_s": ttft_s}
    pd.DataFrame(rows).to_csv(path, index=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(own_services, "FOLDER", tmp_path)
    return tmp_path


def test_a_service_of_ones_own_has_the_requests_of_its_file_and_the_prices_beside_it(folder):
    write(folder / "mine.csv")
    (folder / "mine.prices.json").write_text('{"in": 0.2, "out": 0.8}')
    found = own_services.service("mine")
    assert (found.n, found.paper_service, [*found.hosts]) == (len(TTFT_S), None, ["mine"])
    assert found.ttft.quantile(0.99) == np.sort(TTFT_S)[int(np.ceil(0.99 * len(TTFT_S))) - 1]
    assert (found.price_in, found.price_out) == pytest.approx((0.2e-6, 0.8e-6))
    again = found.resample(np.random.default_rng(1))
    assert set(again.values_s) <= set(TTFT_S)
    assert again.mean != found.ttft.mean
    assert own_services.names() == ["mine"]  # the prices are no service


def test_without_prices_they_are_unknown_and_not_zero(folder):
    write(folder / "mine.csv", TTFT_S[:40])
    found = own_services.chosen("mine, gpt-4o-mini", out=OUT)
    assert np.isnan([found["mine"].price_in, found["mine"].price_out]).all()
    assert own_services.without_prices(found) == ["mine"]
    assert "the P99 is the slowest" in found["mine"].stand_in  # what the reader notes is shown with the service


def test_one_model_of_a_file_with_several(folder):
    start = pd.Timestamp("2026-01-01", tz="UTC")
    rows = [
        {
            "model": "ab"[k % 2],
            "startTime": (start + pd.Timedelta(seconds=9 * k)).isoformat(),
            "completionStartTime": (start + pd.Timedelta(seconds=9 * k + 1 + k % 2)).isoformat(),
            "endTime": (start + pd.Timedelta(seconds=9 * k + 5)).isoformat(),
            "prompt_tokens": 7,
            "completion_tokens": 9,
        }
        for k in range(40)
    ]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert own_services.service("log:b").ttft.values_s == pytest.approx(2.0)
    with pytest.raises(ArtifactError, match=r"one of: a, b; ask for it as log:PART$"):
        own_services.service("log")


def test_what_is_not_asked_for_is_not_even_read(folder):
    before = own_services.chosen("", out=OUT), own_services.chosen("", out=OUT, every=True)
    for name in ("broken.csv", "gpt-4o-mini.csv", "command-r.json"):
        (folder / name).write_text("nothing")
    after = own_services.chosen("", out=OUT), own_services.chosen(" ", out=OUT, every=True)
    assert [*after[0]] == [*traces.paper_services()]
    assert [*after[1]] == traces.services()
    for one, other in zip(before, after, strict=True):
        for name in one:
            assert one[name].source == other[name].source
            assert np.array_equal(one[name].ttft.values_s, other[name].ttft.values_s)
    assert own_services.unjudged(after[0]) == own_services.note(after[0]) == own_services.absent(after[0]) == ""


def test_captions_name_what_is_shown_and_claims_are_left_to_the_papers_services(folder):
    write(folder / "mine.csv")
    found = own_services.chosen("mine,command-r", out=OUT)
    assert own_services.note(found) == " From build/services: mine (120 requests)."
    assert (own_services.number(found), own_services.origin(found)) == (
        "two services",
        "public traces and build/services",
    )
    assert own_services.origin(own_services.chosen("mine", out=OUT)) == "build/services"
    assert own_services.unjudged(found).endswith("shown are mine, command-r.")
    assert own_services.unjudged(own_services.chosen("command-r", out=OUT))


@pytest.mark.parametrize(
    ("asked", "out", "told"),
    [
        ("nope", OUT, "no service 'nope'; committed: gpt-4o-mini, .*; in build/services: broken, .*, worded$"),
        ("gpt-4o-mini:x", OUT, "no service 'gpt-4o-mini:x'; committed"),
        ("command-r", OUT, "command-r.csv has the name of a committed service; give the file another name"),
        ("twice", OUT, "service 'twice' has 2 files, one is allowed: .*twice.csv, .*twice.json"),
        ("broken", OUT, "broken.csv: none of the forms GuideLLM"),
        ("mine:run", OUT, "mine.csv: no part 'run'"),
        ("priced", OUT, "priced.prices.json has no prices in dollars per million tokens: in must be finite and at"),
        ("worded", OUT, "worded.prices.json has no prices .*: out must be a number, got 'free'"),
        ("half", OUT, "half.prices.json has no prices .*: not of the form .*, got {'in': 1}"),
        ("no-json", OUT, "no-json.prices.json has no prices"),
        ("mine", "figures", "out is 'figures', the committed exhibits"),
    ],
)
def test_mistakes_get_one_line(folder, asked, out, told):
    for name in ("mine", "command-r", "twice", "priced", "worded", "half", "no-json"):
        write(folder / f"{name}.csv")
    (folder / "twice.json").write_text("[]")
    (folder / "broken.csv").write_text("a,b\n1,2\n")
    prices = {"priced": '{"in": -1, "out": 1}', "worded": '{"in": 1, "out": "free"}', "half": '{"in": 1}'}
    for name, text in (prices | {"no-json": "{"}).items():
        (folder / f"{name}.prices.json").write_text(text)
    with pytest.raises(DiscoError, match=told) as caught:
        own_services.chosen(asked, out=out)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError | ArtifactError)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ["traces", "optimal", "dispatch"])
def test_a_file_dropped_there_changes_no_exhibit_and_appears_when_asked_for(notebook, tmp_path):
    name = "test-dropped-service"
    path = ROOT / "build" / "services" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    without, dropped, mine = (str(tmp_path / part) for part in ("without", "dropped", "mine"))
    run(notebook, without, out=without)
    try:
        write(path)
        run(notebook, dropped, out=dropped)
        run(notebook, mine, out=mine, service_names=name)
    finally:
        path.unlink()
    first, second = (
        {path.name: path.read_bytes() for path in folder.glob(f"{notebook}*") if path.suffix != ".ipynb"}
        for folder in (tmp_path / "without", tmp_path / "dropped")
    )
    assert len(first) > 20
    assert first == second
    texts = [json.loads(path.read_text()) for path in (tmp_path / "mine").glob(f"{notebook}*.json")]
    assert any(f"{name} ({len(TTFT_S)} requests)" in text["caption"] for text in texts)
    assert not [*(tmp_path / "mine").glob("*.claims.json")]
