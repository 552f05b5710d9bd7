"""What simulated notebooks stand on, and what `sensitivity` and `qoe` make in their quick size."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from artifact.analysis import scenario
from artifact.data import traces


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
