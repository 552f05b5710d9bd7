"""Forecasts: drawn series are what they say, no predictor sees the future, and the oracles are bounds."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.tsa.holtwinters import SimpleExpSmoothing

import disco_core as dc
from artifact.analysis import forecasts, foresight
from artifact.analysis.forecasts import PREDICTORS, REFERENCES, WINDOW
from artifact.data import tables, traces

NAMES = [*REFERENCES, *PREDICTORS]


def made(n, seed=0, series=1):
    """Calls of several series in turn, a little alike from one to the next."""
    rng = np.random.default_rng(seed)
    ttft_s = np.exp(0.3 * np.cumsum(rng.standard_normal(n)) / np.sqrt(np.arange(1, n + 1)))
    name = np.array(list("abc"))[np.arange(n) % series]
    hour = np.arange(n) // 10 % 24
    return pd.DataFrame({"time_s": np.arange(n) * 60.0, "series": name, "hour": hour, "ttft_s": ttft_s})


@pytest.fixture
def few_trees(monkeypatch):
    monkeypatch.setattr(forecasts, "TREES", 5)


# drawn series


@given(lag1_rank=st.floats(0.15, 0.6), seed=st.integers(0, 99), hours=st.integers(1, 5))
@settings(max_examples=15)
def test_a_drawn_series_has_the_quantiles_of_each_hour_and_the_memory(lag1_rank, seed, hours):
    rng = np.random.default_rng(seed)
    levels = np.append(np.arange(1, 20) / 20, 1.0)
    samples = np.sort(rng.gamma(2.0, 0.3, (hours, 20)))
    ttft = {one: dc.TTFTDistribution.from_quantiles(levels, values) for one, values in enumerate(samples)}
    hour = np.arange(600) // 50 % hours
    found = forecasts.drawn(hour, ttft, dc.TTFTDistribution(rng.gamma(2.0, 0.3, 500)), lag1_rank, rng)
    for one, wanted in ttft.items():
        own = dc.TTFTDistribution(found[hour == one])
        assert np.array_equal(own.quantile(levels), wanted.quantile(levels))
    assert forecasts.lag1_correlation(found) == pytest.approx(lag1_rank, abs=0.005)


def test_the_service_with_hours_is_drawn_as_its_tables_say():
    calls = traces.calls("deepseek-chat", rng=np.random.default_rng(0))
    kept = traces.table("ttft_series").set_index("service").loc["deepseek-chat"]
    assert len(calls) == kept.n
    assert forecasts.lag1_correlation(calls.ttft_s) == pytest.approx(kept.lag1_rank, abs=0.001)
    for q, column in {0.5: "p50_s", 0.95: "p95_s"}.items():
        assert np.quantile(calls.ttft_s, q) == pytest.approx(kept[column], rel=0.03)
    by_hour = traces.table("ttft_by_hour")
    for hour, rows in by_hour.groupby("hour"):
        own = calls.ttft_s[calls.hour == hour]
        assert tables.inverse_cdf(own, rows.level) == pytest.approx(rows.ttft_s, abs=1e-9)
        assert len(own) == pytest.approx(rows.n.iloc[0], abs=12)


def test_a_service_of_several_hosts_is_a_series_for_each():
    calls = traces.calls("llama-3-70b", rng=np.random.default_rng(0))
    hosts = traces.service("llama-3-70b").hosts
    assert calls.series.value_counts().to_dict() == {host: n for host, (n, _) in hosts.items()}
    assert calls.time_s.is_monotonic_increasing
    assert calls.hour.isna().all()
    for host, (_, ttft) in hosts.items():
        assert sorted(calls.ttft_s[calls.series == host]) == pytest.approx(list(ttft.values_s))


def test_what_cannot_be_drawn_is_refused():
    two = dc.TTFTDistribution([0.2, 0.4, 0.9])
    with pytest.raises(dc.InputError, match="hour has 3, of which there is no TTFT distribution"):
        forecasts.drawn([0, 3, 0], {0: two}, two, 0.1, np.random.default_rng(0))
    with pytest.raises(dc.InputError, match=r"lag1_rank must lie in \[-0\.\d+, 0\.\d+\] .* got 2"):
        forecasts.drawn([0] * 50, {0: two}, two, 2, np.random.default_rng(0))
    with pytest.raises(
        dc.InputError, match="no service with a published order 'gpt-4o-mini'; there are deepseek-chat"
    ):
        traces.calls("gpt-4o-mini")
    with pytest.raises(dc.InputError, match="rng must be"):
        traces.calls("command-r")


# forecasts


@given(seed=st.integers(0, 50), at=st.integers(70, 99), series=st.integers(1, 3), factor=st.floats(0.1, 30))
@settings(max_examples=6)
def test_no_forecast_sees_the_call_it_is_for_or_a_later_one(seed, at, series, factor):
    calls = made(100, seed, series)
    changed = calls.assign(ttft_s=np.where(np.arange(100) >= at, factor * calls.ttft_s, calls.ttft_s))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecasts, "TREES", 5)
        first, second = (forecasts.forecast(one).set_index("time_s")[NAMES] for one in (calls, changed))
    until = calls.time_s[at]
    pd.testing.assert_frame_equal(first[:until], second[:until])


def test_the_split_is_a_moment_and_the_later_part_is_judged(few_trees):
    calls = made(100, series=3)
    calls["time_s"] = calls.time_s // 180 * 180  # three calls at a time
    found = forecasts.forecast(calls, 0.7)
    assert found.time_s.min() == calls.time_s[70]
    assert len(found) == (calls.time_s >= calls.time_s[70]).sum()
    assert found[NAMES].notna().all(axis=None)
    assert (found[NAMES] > 0).all(axis=None)


def test_plain_forecasts_are_what_their_names_say(few_trees):
    calls = made(120, series=2)
    found = forecasts.forecast(calls, 0.5).set_index("time_s")
    for _, own in calls.groupby("series"):
        early = own[own.time_s < 60 * 60.0]
        start = early.ttft_s.median()
        fitted = SimpleExpSmoothing(
            np.log(early.ttft_s.to_numpy() / start),
            initialization_method="known",
            initial_level=np.log(early.ttft_s / start).iloc[:WINDOW].mean(),
        ).fit()
        whole = SimpleExpSmoothing(
            np.log(own.ttft_s.to_numpy() / start),
            initialization_method="known",
            initial_level=np.log(early.ttft_s / start).iloc[:WINDOW].mean(),
        ).fit(smoothing_level=fitted.params["smoothing_level"], optimized=False)
        smooth = pd.Series(start * np.exp(whole.fittedvalues), index=own.time_s)
        for time_s, row in own[own.time_s >= 60 * 60.0].set_index("time_s").iterrows():
            past = own.ttft_s[own.time_s < time_s]
            said = found.loc[time_s]
            assert said["training median"] == pytest.approx(start)
            assert said["training mean"] == pytest.approx(early.ttft_s.mean())
            assert said["last value"] == pytest.approx(past.iloc[-1])
            assert said["moving average"] == pytest.approx(np.exp(np.log(past[-WINDOW:]).mean()))
            assert said["exponential smoothing"] == pytest.approx(smooth[time_s], rel=1e-6)
            assert said.ttft_s == row.ttft_s


def test_trees_find_what_there_is_to_find():
    n = 600
    rng = np.random.default_rng(0)
    ttft_s = np.where(np.arange(n) // 20 % 24 < 12, 0.5, 1.5) * np.exp(0.05 * rng.standard_normal(n))
    calls = made(n).assign(hour=np.arange(n) // 20 % 24, ttft_s=ttft_s)
    found = forecasts.errors(forecasts.forecast(calls), 50).set_index("forecast")
    assert (found.cut[["random forest", "gradient boosting"]] > 80).all()


def test_errors_are_as_defined(few_trees):
    found = forecasts.forecast(made(200))
    table = forecasts.errors(found, 200).set_index("forecast")
    off = (found["last value"] - found.ttft_s).abs()
    assert table.mae_s["last value"] == pytest.approx(off.mean())
    assert table.mape["last value"] == pytest.approx(100 * (off / found.ttft_s).mean())
    assert table.cut["training median"] == table.cut_low["training median"] == 0
    assert (table.cut_low <= table.cut + 1e-9).all()
    assert (table.cut <= table.cut_high + 1e-9).all()
    assert table.cut["last value"] == pytest.approx(
        100 * (1 - table.mae_s["last value"] / table.mae_s["training median"])
    )


@given(n=st.integers(1, 200), replicates=st.integers(1, 5))
def test_blocks_keep_neighbours_together(n, replicates):
    found = forecasts.blocks(n, replicates, np.random.default_rng(0))
    assert found.shape == (replicates, n)
    assert found.min() >= 0
    assert found.max() < n
    steps = np.diff(found, axis=1) % n == 1 % n
    assert steps.sum(axis=1).min() >= n - 1 - np.ceil(n / min(n, round(2 * n ** (1 / 3))))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ttft_s": 0.0}, "every ttft_s above 0"),
        ({"time_s": np.arange(100)[::-1]}, "in order of time"),
        ({"series": [str(i) for i in range(100)]}, "no series has 10 calls before the split, the longest has 1"),
    ],
)
def test_series_that_cannot_be_forecast_are_refused(change, says):
    with pytest.raises(dc.InputError, match=says):
        forecasts.forecast(made(100).assign(**change))


def test_the_committed_errors_are_those_of_every_service_and_forecast():
    table = traces.table("ttft_forecasts")
    services = traces.table("ttft_series").service.tolist()
    assert table[["service", "forecast"]].to_numpy().tolist() == [[s, f] for s in services for f in NAMES]
    assert (table.cut[table.forecast == "training median"] == 0).all()


@pytest.mark.mirror
@pytest.mark.slow
def test_published_series_are_in_order_and_remember_as_the_table_says():
    calls = traces.calls("deepseek-chat", "public")
    kept = traces.table("ttft_series").set_index("service").loc["deepseek-chat"]
    assert forecasts.lag1_correlation(calls.ttft_s) == pytest.approx(kept.lag1_rank, abs=1e-3)
    assert calls.hour[0] == traces.BEGAN_S // 3600
    llama = traces.calls("llama-3-70b", "public")
    assert llama.series.nunique() == 7 * 3
    assert llama.time_s.is_monotonic_increasing


# what a forecast is worth

REQUESTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=7).map(
    lambda rows: [np.array(column) for column in zip(*rows, strict=True)]
)


def every_choice(tokens, budget):
    for choice in itertools.product([False, True], repeat=tokens.size):
        if tokens @ np.array(choice) <= budget * tokens.sum():
            yield np.array(choice)


@given(requests=REQUESTS, budget=st.floats(0, 1))
@settings(max_examples=60)
def test_no_choice_has_a_lower_mean_than_the_oracle_and_one_request_more(requests, budget):
    server, device, tokens = requests
    start = foresight.oracle_mean(server, device, tokens, budget)
    assert tokens @ start <= budget * tokens.sum()
    saved = np.maximum(server - device, 0)
    best = max(saved @ choice for choice in every_choice(tokens, budget))
    assert best <= saved @ start + saved.max()


@given(requests=REQUESTS, budget=st.floats(0, 1), level=st.sampled_from([0.5, 0.75, 0.99]))
@settings(max_examples=60)
def test_no_choice_has_a_lower_tail_than_the_oracle(requests, budget, level):
    server, device, tokens = requests

    def tail(start):
        first_s = np.where(start, np.minimum(server, device), server)
        return np.quantile(first_s, level, method="inverted_cdf")

    start = foresight.oracle_tail(server, device, tokens, budget, level)
    assert tokens @ start <= budget * tokens.sum()
    assert tail(start) == min(tail(choice) for choice in every_choice(tokens, budget))


@given(requests=REQUESTS, budget=st.floats(0, 1), wait_s=st.integers(0, 9))
@settings(max_examples=60)
def test_a_threshold_spends_the_budget_as_far_as_whole_requests_go(requests, budget, wait_s):
    server, _, tokens = requests
    score = np.arange(tokens.size)[::-1] / 2
    limit = foresight.threshold(score, server, wait_s, tokens, budget)
    allowed = budget * tokens.sum()

    def spent(limit):
        started = (score > limit) | (server > wait_s)
        return tokens @ started

    if np.isposinf(limit):
        assert spent(limit) > allowed
    else:
        assert spent(limit) <= allowed
        assert np.isneginf(limit) or spent(limit - 0.25) > allowed


def test_requests_of_different_number_are_refused():
    with pytest.raises(dc.InputError, match="one entry per request, got 2, 2 and 1"):
        foresight.worth([1.0, 2.0], [1.0, 1.0], [3])


@pytest.mark.parametrize("budget", [0.04, 0.1, 0.3, 0.6, 0.95, 1.0])
def test_a_forecast_that_never_changes_is_disco_d(budget):
    lengths, ttft_s = np.array([3, 5, 8, 13, 21]), np.arange(1, 41) / 20
    tokens, server = (one.ravel() for one in np.meshgrid(lengths, ttft_s))  # every pair once: independent
    plan = dc.plan_device_constrained(lengths, dc.TTFTDistribution(ttft_s), budget)
    wait_s = plan.delays_s[dc.End.DEVICE, -1].max()
    score = foresight.worth(np.full(tokens.size, 0.7), tokens / 30, tokens)
    limit = foresight.threshold(score, server, wait_s, tokens, budget)
    at_once = np.unique(tokens[score > limit])
    # requests of one length are all alike here: the plan mixes two waits at the one where the budget runs out
    waits = (plan.delays_s[dc.End.DEVICE] * plan.probability).sum(axis=1)
    assert at_once.tolist() == lengths[waits == 0].tolist()
