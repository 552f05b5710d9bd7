"""delivery: when a token is released, and QoE as the ratio of two areas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc

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


def test_qoe_at_its_limits():
    assert dc.quality_of_experience([3.0, 4.0]) == dc.quality_of_experience([3.0, 4.0], 1.0, 4.8)
    with pytest.raises(dc.InputError, match="ttft_expected"):
        dc.quality_of_experience([1.0], ttft_expected=-1)
    assert dc.quality_of_experience([0.0, 0.1, 0.2]) == 1.0
    assert dc.quality_of_experience([60.0]) < 0.01
    with pytest.raises(dc.InputError, match="descend"):
        dc.quality_of_experience([2.0, 1.0])
