"""latency, workload, cost, delivery: definitions checked against the plainest restatement of each."""

import doctest
import functools
import importlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from disco_core import checks
from tests.helpers.strategies import times_s

ROOMS = [
    f"disco_core.{name}" for name in ("latency", "workload", "cost", "dispatch", "delivery", "simulate", "queueing")
]
ROOMS += ["disco_core.systems.pd_device.timing", "disco_core.systems.pd_device.refine"]
ROOMS += ["artifact.analysis.quality", "artifact.measure.judge"]


@given(times_s, st.floats(0, 0.05), st.floats(0, 1))
def test_f_is_the_empirical_distribution(samples, t, q):
    ttft = dc.TTFTDistribution(samples)
    n = len(samples)
    assert ttft.cdf(t) == sum(s <= t for s in samples) / n
    assert ttft.sf(t) == pytest.approx(sum(s > t for s in samples) / n, abs=1e-15)
    assert ttft.quantile(q) == min(x for x in samples if sum(s <= x for s in samples) / n >= q)
    assert ttft.mean_min(t) == pytest.approx(sum(min(s, t) for s in samples) / n, abs=1e-12)
    assert ttft.mean_min(np.inf) == pytest.approx(sum(samples) / n) == ttft.mean


@given(times_s)
def test_a_table_of_every_level_is_the_distribution(samples):
    whole = dc.TTFTDistribution(samples)
    levels = np.arange(1, len(samples) + 1) / len(samples)
    table = dc.TTFTDistribution.from_quantiles(levels, whole.quantile(levels))
    t = np.linspace(0, 0.05, 101)
    assert table.cdf(t) == pytest.approx(whole.cdf(t))
    assert table.mean == pytest.approx(whole.mean)
    assert np.array_equal(table.quantile(levels), whole.quantile(levels))


def test_draws_follow_their_distribution():
    rng = np.random.default_rng(0)
    table = dc.TTFTDistribution.from_quantiles([0.5, 0.9, 1.0], [0.1, 0.2, 5.0])
    pool = dc.TTFTDistribution.mixture([table, dc.TTFTDistribution([1.0, 2.0])], [3, 1])
    for ttft in (table, pool, dc.TTFTDistribution([1.0, 2.0, 2.0])):
        drawn = ttft.sample(200_000, rng)
        for value in np.unique(ttft.values_s):
            assert np.mean(drawn <= value) == pytest.approx(ttft.cdf(value), abs=0.005)
    assert pool.mean == pytest.approx(0.75 * table.mean + 0.25 * 1.5)


def test_a_pool_of_one_kind_is_that_kind():
    for n in (20, 37, 200):
        one = dc.TTFTDistribution(np.arange(1.0, n + 1))
        pool = dc.TTFTDistribution.mixture([one] * 3, [1, 5, 1])
        levels = np.arange(1, n + 1) / n
        assert np.array_equal(pool.quantile(levels), one.quantile(levels))


def test_a_distribution_is_its_own():
    values = np.array([0.1, 0.2])
    table = dc.TTFTDistribution.from_quantiles([0.5, 1], values)
    values[1] = 99
    assert table.quantile(1) == 0.2
    with pytest.raises(ValueError, match="read-only"):
        table.values_s[0] = 9


@pytest.mark.parametrize("bad", [float("nan"), "a", None, []])
def test_bad_arguments_of_f_are_named(bad):
    ttft = dc.TTFTDistribution([0.1, 0.2])
    for name, method in {"t": ttft.cdf, "q": ttft.quantile, "x": ttft.mean_min}.items():
        with pytest.raises(dc.InputError, match=name):
            method(bad)
    with pytest.raises(dc.InputError, match="prompt_tokens"):
        dc.DeviceProfile(10.0, 10.0).ttft(bad)
    with pytest.raises(dc.InputError, match="q must"):
        ttft.quantile(1.5)
    with pytest.raises(dc.InputError, match="-5"):
        dc.DeviceProfile(10.0, 10.0).ttft(-5)


LIKE_NUMBERS = [["slow"], None, [[1], [2, 3]], [1j], np.array([1], "timedelta64[s]"), [10**400]]
OUTSIDE = [[], [-0.1], [np.nan], [np.inf], [0.1, np.inf], [0.1, np.nan], [0.1, -1]]


@pytest.mark.parametrize("bad", LIKE_NUMBERS + OUTSIDE)
def test_bad_samples_are_named(bad):
    with pytest.raises(dc.InputError, match="samples_s"):
        dc.TTFTDistribution(bad)


@pytest.mark.parametrize(
    ("levels", "values"),
    [
        ([0.5, 0.9], [1, 2]),
        ([0.9, 0.5, 1], [1, 2, 3]),
        ([0.5, 1], [2, 1]),
        ([1], [1, 2]),
        ([0.5, float("nan"), 1], [1, 2, 3]),
        (["a", 1], [1, 2]),
        ([-0.1, 1], [1, 2]),
    ],
)
def test_bad_tables_are_refused(levels, values):
    with pytest.raises(dc.InputError):
        dc.TTFTDistribution.from_quantiles(levels, values)


@given(st.floats(10, 500), st.floats(0, 2))
def test_a_fit_finds_the_line_it_was_made_from(rate, startup):
    lengths = np.array([8, 64, 256, 1024] * 3)
    fitted = dc.DeviceProfile.fit(lengths, lengths / rate + startup, 20.0)
    assert fitted.prefill_rate == pytest.approx(rate, rel=1e-6)
    assert fitted.startup == pytest.approx(startup, abs=1e-6)
    assert fitted.r_squared == pytest.approx(1.0)


def test_a_fit_needs_a_rising_line():
    with pytest.raises(dc.InputError, match="grow"):
        dc.DeviceProfile.fit([10, 20], [0.2, 0.1], 20.0)
    with pytest.raises(dc.InputError, match="two different"):
        dc.DeviceProfile.fit([10, 10], [0.1, 0.2], 20.0)
    assert dc.DeviceProfile.fit([10, 20], [0.1, 0.9], 20.0).startup == 0.0


def test_a_noisy_fit_is_least_squares():
    length, time = np.array([10.0, 20, 40, 80]), np.array([0.5, 0.4, 1.1, 1.7])
    fitted = dc.DeviceProfile.fit(length, time, 20.0)
    slope = np.cov(length, time)[0, 1] / np.var(length, ddof=1)
    assert fitted.prefill_rate == pytest.approx(1 / slope)
    assert fitted.startup == pytest.approx(time.mean() - slope * length.mean())
    assert fitted.r_squared == pytest.approx(np.corrcoef(length, time)[0, 1] ** 2)
    origin = dc.DeviceProfile.fit([10, 20], [0.1, 0.9], 20.0)
    assert origin.prefill_rate == pytest.approx(500 / 19.0)  # sum l^2 / sum l t


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (0, "at least 1, got 0"),
        (-1, "at least 1, got -1"),
        (0.0, "at least 1, got 0.0"),
        (2.5, "at least 1, got 2.5"),
        (float("nan"), "at least 1, got nan"),
        ("9", "at least 1, got '9'"),
        (None, "at least 1, got None"),
        (True, "at least 1, got True"),
        (2**31, "at most 2147483647, got 2147483648"),
        (float("inf"), "at most 2147483647, got inf"),
    ],
)
def test_a_count_is_named_as_it_was_given(bad, said):
    with pytest.raises(dc.InputError) as caught:
        checks.count(bad, "max_tokens")
    assert str(caught.value) == f"max_tokens must be a whole number of {said}"


@pytest.mark.parametrize("good", [1, 7.0, np.int64(3), np.float64(5), 2**31 - 1])
def test_a_whole_number_of_any_kind_is_a_count(good):
    assert checks.count(good, "max_tokens") == good
    assert type(checks.count(good, "max_tokens")) is int


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), None, "31.32", True, 10**400])
def test_bad_profiles_are_named(rate):
    with pytest.raises(dc.InputError, match="prefill_rate"):
        dc.DeviceProfile(rate, 10.0)
    with pytest.raises(dc.InputError, match="decode_rate"):
        dc.ServerProfile(dc.TTFTDistribution([1.0]), rate)
    with pytest.raises(dc.InputError, match="decode_rate"):
        dc.DeviceProfile.fit([10, 20], [0.1, 0.9], rate)
    with pytest.raises(dc.InputError, match="startup"):
        dc.DeviceProfile(1.0, 1.0, -0.1)


def test_workload_and_histogram():
    rng = np.random.default_rng(0)
    prompt = dc.LengthDistribution([3, 7], [1, 3])
    load = dc.Workload.sample(100_000, prompt, prompt, rng, rate=4.0)
    assert len(load) == 100_000
    assert load.prompt_tokens.mean() == pytest.approx(prompt.mean, rel=0.01)
    assert load.arrival_s[-1] == pytest.approx(25_000, rel=0.02)
    same = dc.LengthDistribution.of(load.prompt_tokens)
    assert same.counts.sum() == 100_000
    wide = dc.LengthDistribution.of([5, 10_000_000, 5])  # too wide to count cell by cell
    assert wide.tokens.tolist() == [5, 10_000_000]
    assert wide.counts.tolist() == [2, 1]
    with pytest.raises(dc.InputError, match="one entry per request"):
        dc.Workload([0.0], [1, 2], [1])
    with pytest.raises(dc.InputError, match="3 and then 3"):
        dc.LengthDistribution([3, 3], [1, 1])
    for n in (0, -1, 2.5, "ten"):
        with pytest.raises(dc.InputError, match="n must"):
            prompt.sample(n, rng)


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ((1, 2, 3, 4), dc.Constraint.DEVICE),
        ((3, 4, 1, 2), dc.Constraint.SERVER),
        ((1, 3, 2, 4), None),
        ((1, 2, 2, 3), None),
        ((0, 0, 0, 0), None),
    ],
)
def test_prices_decide_which_end_is_scarce_or_refuse(prices, expected):
    model = dc.CostModel(*(p * 1e-6 for p in prices))
    if expected:
        assert model.constraint is expected
    else:
        with pytest.raises(dc.ConstraintError, match="choose"):
            _ = model.constraint


@pytest.mark.parametrize("bad", [None, -1e-6, float("nan"), float("inf"), "1e-6"])
def test_missing_or_negative_prices_are_named(bad):
    with pytest.raises(dc.InputError, match="device_prefill"):
        dc.CostModel(1e-6, 1e-6, bad, 1e-6)


def test_energy_is_priced_by_the_exchange_rate():
    model = dc.CostModel.from_energy(1e-6, 2e-6, 0.06, 0.35, exchange_rate=1e-5)
    assert (model.device_prefill, model.device_decode) == pytest.approx((6e-7, 3.5e-6))
    with pytest.raises(dc.InputError, match="exchange_rate"):
        dc.CostModel.from_energy(1e-6, 2e-6, 0.06, 0.35, exchange_rate=-1)


arrivals = st.lists(st.integers(0, 3000), min_size=1, max_size=20).map(lambda ms: np.sort(ms) / 1000)


@given(arrivals, st.sampled_from([4.8, 3.3, 10.0]))
def test_release_waits_for_the_deadline_and_never_for_more(generated, rate):
    released = dc.release(generated, rate)
    for i, (g, r) in enumerate(zip(generated, released, strict=True)):
        assert r == pytest.approx(max(g, generated[0] + i / rate))
    assert dc.delayed(generated, rate).tolist() == [g > generated[0] + i / rate for i, g in enumerate(generated)]
    assert np.all(dc.time_between_tokens(released) >= 0)


def digested(t, released, rate, expected):
    """Tokens digested by time t, one after the other at the reading rate, none before the ideal start."""
    done, free = 0.0, expected
    for time in released:
        begun = max(time, free)
        done += min(1.0, max(0.0, (t - begun) * rate))
        free = begun + 1 / rate
    return done, free


@given(arrivals, st.sampled_from([4.8, 3.3]))
def test_qoe_is_the_ratio_of_the_two_areas(released, rate):
    ideal = [1.0 + i / rate for i in range(len(released))]
    end = digested(0.0, released, rate, 1.0)[1]
    grid = (np.arange(20_000) + 0.5) / 20_000 * end
    area, best = (sum_area(grid, times, rate) for times in (released, ideal))
    assert dc.quality_of_experience(released, reading_rate=rate) == pytest.approx(area / best, abs=2e-3)


def sum_area(grid, released, rate):
    total, free = np.zeros_like(grid), 1.0
    for time in released:
        begun = max(time, free)
        total += np.clip((grid - begun) * rate, 0, 1)
        free = begun + 1 / rate
    return total.sum()


def test_qoe_ends():
    assert dc.quality_of_experience([3.0, 4.0]) == dc.quality_of_experience([3.0, 4.0], 1.0, 4.8)
    with pytest.raises(dc.InputError, match="ttft_expected"):
        dc.quality_of_experience([1.0], ttft_expected=-1)
    assert dc.quality_of_experience([0.0, 0.1, 0.2]) == 1.0
    assert dc.quality_of_experience([60.0]) < 0.01
    with pytest.raises(dc.InputError, match="descend"):
        dc.quality_of_experience([2.0, 1.0])


def test_the_public_face_is_what_is_exported():
    assert sorted(dc.__all__) == dc.__all__
    assert all(hasattr(dc, name) for name in dc.__all__)
    public = {name for name in vars(dc) if not name.startswith("_") and not isinstance(getattr(dc, name), type(dc))}
    assert public == set(dc.__all__)
    assert all(getattr(dc, name).__doc__ for name in dc.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_docstring_examples_run(room):
    assert doctest.testmod(importlib.import_module(room)).failed == 0


def test_import_is_light_and_quick():
    """Ours adds less than NumPy takes, a ratio that a busy machine keeps; asyncio is Python's."""
    code = (
        "import asyncio, sys, time; t0 = time.perf_counter(); import numpy; t1 = time.perf_counter(); "
        "import disco_core; "
        "t2 = time.perf_counter(); print((t2 - t1) / (t1 - t0), *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    run = functools.partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True)
    runs = [run().stdout.split() for _ in range(5)]
    heavy = {"scipy", "pandas", "matplotlib", "seaborn", "papermill", "llama_cpp", "pooch", "tqdm", "httpx"}
    assert heavy.isdisjoint(runs[0])
    assert np.median([float(words[0]) for words in runs]) < 1


@pytest.mark.parametrize("lengths", [[5, 9, 100], [7, 8], [10, 20, 30]])
@pytest.mark.parametrize("time_s", [0.0, 0.1, 0.3])
def test_a_device_that_took_the_same_for_all_lengths_is_no_line(lengths, time_s):
    with pytest.raises(dc.InputError, match="must grow with prompt length"):
        dc.DeviceProfile.fit(lengths, [time_s] * len(lengths), 20.0)


def test_a_pool_by_weights_of_any_size():
    one, two = dc.TTFTDistribution([1.0]), dc.TTFTDistribution([2.0])
    even = dc.TTFTDistribution.mixture([one, two], [1e308, 1e308])
    assert (even.mean, float(even.cdf(1.0))) == (pytest.approx(1.5), pytest.approx(0.5))
    only = dc.TTFTDistribution.mixture([one, two], [0, 1])
    assert (float(only.cdf(1.0)), float(only.quantile(1e-14))) == (0.0, 2.0)


def test_lengths_whose_sums_would_overflow_are_refused():
    most = checks.MOST_TOKENS
    with pytest.raises(dc.InputError, match="too large"):
        dc.LengthDistribution([most - 2, most - 1, most], [most] * 3)
