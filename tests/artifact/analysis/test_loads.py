"""A server's load beside a device's queue: quantiles, crossings, and what is simulated, counted another way."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from artifact.analysis import loads
from artifact.analysis.queues import QueueStudy
from artifact.data import traces
from disco_core.queueing import alone_s, simulate_queue

PHONE = "Xiaomi 14 + Qwen1.5-0.5B"
DEVICE = traces.devices()[PHONE]


def asked(n=40, servers=(0.1, 0.9), seed=0):
    """Measured requests: TTFT ten times as long at the higher load; one in ten failed."""
    rng, parts = np.random.default_rng(seed), []
    for server in servers:
        for stretch in range(2):
            part = {"load": server, "rate": 5 * server, "stretch": stretch, "request": range(n)}
            part |= {"arrival_s": np.sort(rng.random(n)) * n / (5 * server)}
            part |= {"prompt_tokens": rng.integers(10, 120, n)}
            part |= {"ttft_s": rng.lognormal(-2, 0.4, n) * (10 if server == 0.9 else 1)}
            parts.append(pd.DataFrame(part))
    table = pd.concat(parts, ignore_index=True)
    table.loc[table.request % 10 == 3, "ttft_s"] = np.nan
    return table


def a_study(requests, budgets=(0.5,), device_loads=(0.1, 0.8), n=300):
    patterns = {"azure-conv": traces.pattern("azure-conv")}
    lengths = traces.lengths("alpaca"), traces.lengths("alpaca", "output")
    return loads.LoadStudy(QueueStudy(patterns, device_loads, *lengths, n, 0), {PHONE: DEVICE}, budgets, requests)


def test_quantiles_are_those_of_the_requests_that_were_answered():
    table = loads.by_load(asked(), 200, np.random.default_rng(0)).set_index("load")
    ttft_s = np.sort(asked().query("load == 0.9").ttft_s.dropna())
    row = table.loc[0.9]
    assert (row.requests, row.failed) == (80, 8)
    assert row.p50_s == ttft_s[35]
    assert row.p99_s == ttft_s[-1]
    assert row.p50_s_low < row.p50_s < row.p50_s_high
    assert row.p99_s_low <= row.p99_s == row.p99_s_high  # a resample has no larger one
    assert not [name for name in loads.by_load(asked(), 0, np.random.default_rng(0)) if name.endswith("_low")]


def test_a_band_over_blocks_is_wider_where_neighbours_are_alike():
    rng, rows = np.random.default_rng(0), asked(200, (0.9,))
    rows["ttft_s"] = np.repeat(rng.lognormal(0, 1, 20), 20)  # 20 in a row alike
    alike = loads.by_load(rows, 400, np.random.default_rng(1)).iloc[0]
    mixed = loads.by_load(rows.assign(ttft_s=rng.permutation(rows.ttft_s)), 400, np.random.default_rng(1)).iloc[0]
    assert alike.p50_s_high - alike.p50_s_low > 1.5 * (mixed.p50_s_high - mixed.p50_s_low)


@given(st.floats(0.05, 0.85), st.floats(0.5, 80))
def test_the_end_of_a_gain_that_falls_on_a_line_is_the_zero_of_the_line(zero, slope):
    at = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert loads.gains_up_to(at, slope * (zero - at)) == pytest.approx(zero)


def test_a_gain_that_never_ends_or_never_begins_ends_at_the_ends_of_the_axis():
    assert loads.gains_up_to([0.1, 0.9], [3.0, 1.0]) == 0.9
    assert loads.gains_up_to([0.1, 0.9], [-3.0, 1.0]) == 0.1
    assert loads.gains_up_to([0.1, 0.9], [0.0, 1.0]) == 0.1
    assert loads.gains_up_to([0.1, 0.5, 0.9], [1.0, 0.0, 1.0]) == 0.5  # the first time


def test_a_cell_is_the_queue_simulated_with_the_measured_ttfts():
    study, b = a_study(asked()), 0.5
    rows = pd.DataFrame(study.apart())
    assert len(rows) == 2 * 2 * 3
    part = asked().query("load == 0.9").ttft_s.dropna()
    workload = study.study.workload
    seeds = study.study.seeds
    ttft_s = dc.TTFTDistribution(part).sample(300, np.random.default_rng(seeds[2]))
    at_s = study.study.arrivals["azure-conv"] * alone_s(workload, DEVICE).sum() / 0.8
    arriving = dc.Workload(at_s, workload.prompt_tokens, workload.output_tokens)
    plan = dc.plan_server_constrained(study.study.prompt, b)
    delays = plan.draw(workload.prompt_tokens, np.random.default_rng(seeds[3]))
    profile = dc.ServerProfile(dc.TTFTDistribution(part), 50.0)
    result = simulate_queue(arriving, plan, profile, DEVICE, ttft_s=ttft_s, delays_s=delays)
    row = rows.query("server == 0.9 and load == 0.8 and policy == 'DiSCo'").iloc[0]
    assert row.p99_s == np.sort(result.ttft_s)[296]
    assert row.busy == result.device_busy
    stoch = rows.query("server == 0.9 and load == 0.8 and policy == 'Stoch'").iloc[0]
    cut = loads.cuts(rows).query("server == 0.9 and load == 0.8").iloc[0]
    assert cut.cut == pytest.approx(100 * (1 - row.p99_s / stoch.p99_s))


def test_tied_requests_keep_their_order_and_each_its_own_ttft():
    requests = asked()
    study = a_study(requests)
    part = loads.answered(requests).query("load == 0.9")
    workload, ttft_s = study._stream(part, np.random.default_rng(0))
    assert len(workload) == loads.REPEATS * len(part)
    assert (np.diff(workload.arrival_s) >= 0).all()
    assert workload.arrival_s[-1] <= 1
    first = part.query("stretch == 0")
    assert (ttft_s[: len(first)] == first.ttft_s).all()
    assert (workload.prompt_tokens[: len(first)] == first.prompt_tokens).all()
    gaps = np.diff(workload.arrival_s[: len(first)])
    assert np.allclose(gaps / gaps.sum(), np.diff(first.arrival_s) / np.ptp(first.arrival_s))
    rows = pd.DataFrame(study.tied())
    assert (rows.server == rows.load).all()
    assert set(rows.pattern) == {loads.MEASURED, loads.MIXED}
    assert rows.query("policy == 'Stoch'").busy.lt(0.7).all()


def test_ends_are_those_of_the_medians_with_the_quartiles_of_the_cells():
    rows = [
        {
            "server": 0.1,
            "device": phone,
            "pattern": "p",
            "load": load,
            "cut": cut,
            "cut_favourable": -1.0,
            "busy": 0.5,
        }
        for phone, zero in {"a": 0.2, "b": 0.4, "c": 0.8}.items()
        for load, cut in ((0.0, 10 * zero), (1.0, 10 * (zero - 1)))
    ]
    found = loads.ends(pd.DataFrame(rows)).iloc[0]
    assert found.up_to == pytest.approx(0.4)
    assert (found.up_to_low, found.up_to_high) == pytest.approx((0.3, 0.6))
    assert found.up_to_favourable == 0.0
