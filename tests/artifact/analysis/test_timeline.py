"""The tokens of one answer are those of the simulator, which counts late tokens and hand-overs by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import disco_core as dc
from artifact.analysis import scenario, timeline
from artifact.data import traces

SERVICE, PHONE = "gpt-4o-mini", "Xiaomi 14 + Qwen1.5-0.5B"


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 200),
    st.floats(0, 1),
    st.sampled_from(dc.Constraint),
    st.sampled_from([4.8, 12.0]),
)
def test_a_timeline_agrees_with_the_simulator(prompt, length, level, constraint, reading_rate):
    service, device = traces.service(SERVICE), traces.devices()[PHONE]
    server, ttft_s = scenario.server(service.ttft), float(service.ttft.quantile(level))
    prices = scenario.cost_model(service, constraint)
    rule = dc.MigrationRule(prices, traces.lengths("alpaca", "output"), service.ttft, device, reading_rate)
    plan = dc.plan_disco(constraint, traces.lengths("alpaca"), service.ttft, 0.5)
    load, rng = dc.Workload([0.0], [prompt], [length]), np.random.default_rng(0)
    result = dc.simulate(load, plan, server, device, prices, rule, ttft_s=[ttft_s], rng=rng)
    tokens = timeline.timeline(result, rule, server, device, ttft_s)
    assert len(tokens) == length
    assert tokens.generated_s[0] == result.ttft_s[0]
    assert dc.delayed(tokens.generated_s, reading_rate).sum() == result.delay_num[0]
    qoe = dc.quality_of_experience(tokens.released_s, reading_rate=reading_rate)
    assert qoe == pytest.approx(result.qoe[0])
    migrated_at = result.migrated_at[0]
    assert tokens.endpoint.nunique() == (2 if migrated_at else 1)
    winner = dc.End(result.winner[0]).name.lower()
    assert (tokens.endpoint == winner).sum() == (migrated_at or length)
