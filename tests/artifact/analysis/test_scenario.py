"""What simulated notebooks stand on, and what `sensitivity` and `qoe` make in their quick size."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from artifact.analysis import scenario
from artifact.data import traces
from artifact.publish import claims
from artifact.publish.run import run


@given(
    first_s=st.floats(0, 60),
    tokens=st.integers(1, 300),
    rate=st.floats(0.5, 20),
    faster=st.floats(1, 10),
)
def test_an_answer_on_pace_is_late_by_its_first_token_only(first_s, tokens, rate, faster):
    generated_s = first_s + np.arange(tokens) / (rate * faster)
    quality = dc.quality_of_experience(dc.release(generated_s, rate), reading_rate=rate)
    late_s = max(first_s - 1.0, 0.0)
    assert quality == pytest.approx(1 / (1 + 2 * late_s * rate / tokens), abs=1e-9)


def test_the_days_together_are_the_trace():
    days = [part for _, part in traces.table("ttft_by_day").groupby("day")]
    whole = traces.service("deepseek-chat")
    counts = [part.n.iloc[0] for part in days]
    assert sum(counts) == whole.n
    pool = dc.TTFTDistribution.mixture([dc.TTFTDistribution.from_quantiles(p.level, p.ttft_s) for p in days], counts)
    at = whole.ttft.values_s
    assert np.abs(pool.cdf(at) - whole.ttft.cdf(at)).max() <= 0.005  # one step of the levels
    assert pool.mean == pytest.approx(whole.ttft.mean, rel=0.01)


def test_the_paper_s_services_are_chosen_by_their_column_wherever_they_stand(monkeypatch):
    expected = ["gpt-4o-mini", "deepseek-chat", "llama-3-70b", "command-r"]
    assert list(traces.paper_services()) == expected
    read = traces.table

    def turned(name, source="tables"):
        return read(name, source)[::-1] if name == "services" else read(name, source)

    monkeypatch.setattr(traces, "table", turned)
    assert list(traces.paper_services()) == expected[::-1]
    with pytest.raises(dc.InputError, match="no source 'elsewhere'"):
        traces.paper_services("elsewhere")


def test_a_device_s_profile_is_the_line_through_all_first_tokens_and_the_median_gap():
    times_s = {8: [0.5, 0.6, 0.9], 16: [0.9, 1.1, 1.2]}
    rows = [(l, r, k, at + 0.01 * r) for l, each in times_s.items() for r in (0, 1) for k, at in enumerate(each)]
    trials = pd.DataFrame(rows, columns=["prompt_tokens", "repeat", "token", "generated_s"])
    device = scenario.device_profile(trials)
    assert device.ttft([8, 16]) == pytest.approx([0.505, 0.905])
    assert device.decode_rate == pytest.approx(1 / 0.15)
    with pytest.raises(dc.InputError, match="several tokens each"):
        scenario.device_profile(trials[trials.token == 0])
    with pytest.raises(dc.InputError, match="two different lengths"):
        scenario.device_profile(trials[trials.prompt_tokens == 8])


def in_quick_size(folder):
    """Whether every simulated exhibit says that it is the quick size, and none has a band."""
    made = [json.loads(path.read_text()) for path in folder.glob("*.json") if not path.stem.endswith(".claims")]
    columns = {column for path in folder.glob("*.csv") for column in pd.read_csv(path, nrows=0)}
    return (
        all(one["caption"].endswith(" Quick size.") for one in made if one["kind"] == "simulated")
        and all(one["parameters"]["quick"] for one in made)
        and not [column for column in columns if column.endswith(("_low", "_high"))]
    )


def verdicts(folder):
    found = [one for path in folder.glob("*.claims.json") for one in json.loads(path.read_text())]
    return {one["id"]: one["verdict"] for one in found}


@pytest.mark.slow
def test_sensitivity_finds_what_a_plan_for_another_world_spends(tmp_path):
    run("sensitivity", tmp_path, quick=True, out=str(tmp_path))
    varied = pd.read_csv(tmp_path / "sensitivity_alpha.csv")
    planned = varied[(varied.varied == "alpha") | (varied.constrained == "device")]
    assert planned.deviation.abs().max() < 1e-9  # the world that was planned for: b exactly
    other = pd.read_csv(tmp_path / "sensitivity_lengths.csv")
    # DiSCo-S on stretched prompts, counted one by one
    prompt = traces.lengths("alpaca")
    lengths = np.repeat(prompt.tokens, prompt.counts)
    threshold = min(l for l in prompt.tokens if lengths[lengths > l].sum() <= 0.5 * lengths.sum())
    row = other[(other.prompts == "2 times as long") & (other.constrained == "server") & (other.b == 0.5)]
    assert row.share.to_numpy() == pytest.approx(lengths[2 * lengths > threshold].sum() / lengths.sum(), rel=1e-5)
    days = pd.read_csv(tmp_path / "sensitivity_days.csv")
    assert len(days) == 4 * 9 * 3
    few = pd.read_csv(tmp_path / "sensitivity_samples.csv")
    spread = few.groupby("n").deviation.std()
    assert spread[1000] < spread[100] < spread[10]
    assert set(verdicts(tmp_path)) == {"S1"}
    assert in_quick_size(tmp_path)
    assert not any("this machine" in path.read_text() for path in tmp_path.glob("sensitivity*.json"))


@pytest.mark.slow
def test_qoe_judges_every_policy(tmp_path):
    run("qoe", tmp_path, quick=True, out=str(tmp_path))
    cells = pd.read_csv(tmp_path / "qoe.csv")
    assert cells.qoe.between(0, 1).all()
    assert set(cells.policy) == {"server only", "device only", "Stoch", "Stoch+", "DiSCo", "DiSCo, not moving"}
    spending = cells[(cells.pace == "reading") & cells.b.notna()]
    assert (spending.groupby("policy").size() == 4 * 3 * 2 * 3).all()
    # one more end can only be sooner, so no worse than the end that is always asked
    kinder = spending[spending.policy == "Stoch+"].groupby(["scarce", "service", "device"]).qoe.min()
    alone = cells[(cells.pace == "reading") & cells.b.isna()].set_index(["scarce", "service", "device", "policy"]).qoe
    for (scarce, service, device), lowest in kinder.items():
        cheap = {"device": "server only", "server": "device only"}[scarce]
        assert lowest >= alone[scarce, service, device, cheap] - 1e-6
    shown = pd.read_csv(tmp_path / "qoe_table.csv")
    assert len(shown) == 2 * (2 + 2 * 4)
    assert verdicts(tmp_path).keys() == {"E1"}
    assert in_quick_size(tmp_path)
    assert verdicts(tmp_path)["E1"] in (claims.PASS, claims.DIFFERS)
