"""latency: distributions of TTFT and device profiles, against the plainest restatement of each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from tests.helpers.strategies import times_s


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


def test_a_pool_of_equal_distributions_is_that_distribution():
    for n in (20, 37, 200):
        one = dc.TTFTDistribution(np.arange(1.0, n + 1))
        pool = dc.TTFTDistribution.mixture([one] * 3, [1, 5, 1])
        levels = np.arange(1, n + 1) / n
        assert np.array_equal(pool.quantile(levels), one.quantile(levels))


def test_a_distribution_is_a_copy_of_its_samples():
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
