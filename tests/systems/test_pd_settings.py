"""P/D-Device's settings against every k there is, and its answers against one token after the other."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from disco_core.systems import pd_device
from disco_core.systems.pd_device.timing import Settings, choose, simulate_pd

DEVICE = dc.DeviceProfile(prefill_rate=50.0, decode_rate=20.0, startup=0.1)

# round values beside arbitrary ones, so that endpoints meet at the same instant
lengths = st.integers(1, 8192)
firsts_s = st.sampled_from([0.1, 0.2, 0.5, 1.0, 4.0]) | st.floats(0.05, 10)
tokens_s = st.sampled_from([0.01, 0.02, 0.05]) | st.floats(0.005, 0.1)
limits_s = st.sampled_from([0.03, 0.05, 0.06, 0.1]) | st.floats(0.02, 0.3)
answers = st.integers(1, 300)
shares = st.sampled_from([1.0, 0.9, 0.55, 0.3, 0.1])
devices = st.builds(
    dc.DeviceProfile,
    prefill_rate=st.sampled_from([20.0, 50.0, 100.0]) | st.floats(20, 500),
    decode_rate=st.sampled_from([20.0, 50.0]) | st.floats(5, 60),
    startup=st.sampled_from([0.0, 0.1]),
)
# prompts that the device has read about when the cloud is, and their place among all that there are
near = st.integers(1, 60)


def refined(length, rho):
    """`ceil(rho l)` in whole hundredths, which a share of the tests is."""
    return -(-length * round(rho * 100) // 100)


def read_at(length, rho, first_s, device):
    """When a device has read the prompt: it gets a refined one with the cloud's first token."""
    own = refined(length, rho) / device.prefill_rate + device.startup
    return own if rho == 1 else first_s + own


def timing(k, first_s, token_s, read_s, device):
    """R and tau, as the module's docstring has them."""
    ready = max(read_s, first_s + k * token_s) + (k + 1) / device.prefill_rate
    return ready, max(token_s, (ready - first_s) / (k + 1))


def least(first_s, token_s, device, length, output, limit, rho):
    """The least k by trying all; -1 where the device answers first, None where there is none."""
    read_s = read_at(length, rho, first_s, device)
    if 1 / device.decode_rate > limit:
        return None
    if read_s < first_s:
        return -1
    return next((k for k in range(output) if timing(k, first_s, token_s, read_s, device)[1] <= limit), None)


@given(firsts_s, tokens_s, devices, lengths | near, answers, limits_s, shares)
def test_k_is_the_least_that_keeps_the_pace(first_s, token_s, device, length, output, limit, rho):
    found = choose(first_s, token_s, device, [length], output, limit, [rho], [0.0])
    loose, tight = (least(first_s, token_s, device, length, output, limit * (1 + e), rho) for e in (1e-9, -1e-9))
    if not found.feasible[0]:
        assert tight is None  # also with a limit that rounding cannot touch
        assert (found.k[0], found.rho[0], found.tau_s[0], found.ready_s[0]) == (output - 1, 1, token_s, math.inf)
        return
    assert loose is not None
    if loose == -1:
        assert found.k[0] == 0
        assert found.ready_s[0] == pytest.approx(read_at(length, rho, first_s, device))
        assert found.tau_s[0] == 1 / device.decode_rate
        return
    assert loose <= found.k[0] <= (output if tight is None else tight)
    ready, tau = timing(int(found.k[0]), first_s, token_s, read_at(length, rho, first_s, device), device)
    assert (found.ready_s[0], found.tau_s[0]) == pytest.approx((ready, tau), rel=1e-9)
    assert found.tau_s[0] <= limit


@st.composite
def many(draw):
    """Requests of one device, as columns: prompt, output, C, t_c."""
    n = draw(st.integers(1, 6))
    columns = [st.lists(values, min_size=n, max_size=n) for values in (lengths | near, answers, firsts_s, tokens_s)]
    return [np.array(draw(column)) for column in columns]


@given(many(), devices, limits_s, st.dictionaries(shares, st.sampled_from([0.0, 0.01, 0.2]), min_size=1))
def test_all_k_and_rho_in_the_same_arithmetic(load, device, limit, losses):
    if min(losses.values()) > 0.01:
        losses[1.0] = 0.0  # some share must be allowed
    prompt, output, first_s, token_s = load
    found = choose(first_s, token_s, device, prompt, output, limit, list(losses), losses.get, 0.01)
    losses = {rho: loss for rho, loss in losses.items() if loss <= 0.01}
    for i in range(prompt.size):
        best = (output[i], 0.0)  # k or -1, minus rho
        for rho in losses:
            behind = device.ttft(refined(int(prompt[i]), rho)) - (first_s[i] if rho == 1 else 0)
            k = np.arange(output[i])
            fits = pd_device.pace(k, behind, token_s[i], device.prefill_rate) <= limit
            if 1 / device.decode_rate <= limit:
                if behind < 0:
                    best = min(best, (-1, -rho))
                elif fits.any():
                    best = min(best, (k[fits][0], -rho))
        assert found.feasible[i] == (best[1] < 0)
        if found.feasible[i]:
            assert (found.k[i], found.rho[i]) == (max(best[0], 0), -best[1])


@pytest.mark.parametrize(
    ("prefill_rate", "limit", "length", "first_s", "k"),
    [(200.0, 0.036, 3039, 0.16, 484), (500.0, 0.062, 6215, 5.77, 111), (50.0, 0.1, 105, 0.5, 19)],
)
def test_where_the_quotient_is_rounded_the_pace_decides(prefill_rate, limit, length, first_s, k):
    """Quotients that are whole but for rounding, which falls to either side."""
    found = choose(first_s, 0.005, dc.DeviceProfile(prefill_rate, 60.0), [length], 1000, limit)
    behind = length / prefill_rate - first_s
    assert found.k.tolist() == [k]
    assert pd_device.pace(k - 1, behind, 0.005, prefill_rate) > limit >= found.tau_s[0]


def test_a_device_that_reads_slowly_may_be_too_slow_for_any_k():
    """u = 0.01 s: from k = 10 the pace waits for the prompt no longer, but up to k = 1 only the device keeps up."""
    assert not choose(0.5, 0.02, dc.DeviceProfile(50, 60), [30], 300, 0.03).feasible[0]
    assert choose(0.5, 0.009, dc.DeviceProfile(50, 60), [30], 300, 0.03).k.tolist() == [9]
    assert choose(0.5, 0.009, dc.DeviceProfile(50, 60), [30], 10, 0.03).k.tolist() == [9]
    assert not choose(0.5, 0.009, dc.DeviceProfile(50, 60), [30], 9, 0.03).feasible[0]


def test_of_shares_that_need_the_same_k_the_largest_is_taken_and_a_lossy_one_is_not():
    device = dc.DeviceProfile(500.0, 30.0)

    def asked(loss):
        return choose(0.2, 0.02, device, [1000], 300, 0.1, [0.1, 0.2, 0.21, 0.5, 1.0], loss, 0.05)

    assert asked([0, 0, 0, 0, 0]).rho.tolist() == [0.1]
    assert asked(lambda rho: 0.5 - rho).rho.tolist() == [0.5]
    fast = choose(0.2, 0.02, dc.DeviceProfile(500, 30), [10], 300, 0.1, [0.1, 0.2, 1.0], [0, 0, 0])
    assert (fast.rho.tolist(), fast.k.tolist(), fast.feasible.tolist()) == ([1.0], [0], [True])
    same = choose(0.001, 0.02, dc.DeviceProfile(500, 30), [10], 300, 0.1, [0.1, 0.2, 0.3], [0, 0, 0])
    assert (same.rho.tolist(), same.k.tolist()) == ([0.3], [0])


def answer(length, output, k, rho, feasible, first_s, token_s, device, planned):
    """One request, token by token: release times, tokens of the cloud, its slot's seconds, the device's reading."""
    cloud = [first_s + i * token_s for i in range(output)]
    if not feasible:
        return cloud, output, cloud[-1], 0
    read_s = read_at(length, rho, first_s, device)
    if read_s < first_s:
        return [read_s + j / device.decode_rate for j in range(output)], 0, read_s, length
    cloud = cloud[: k + 1]
    tau = timing(k, first_s, token_s, max(first_s, read_at(length, rho, first_s, planned)), planned)[1]
    released, clock = [first_s], max(read_s, cloud[-1])
    for made in cloud[1:]:
        assert made <= released[-1] + tau + 1e-9
        released.append(released[-1] + tau)
    held, read = cloud[-1], refined(length, rho)
    if output > k + 1:
        for _ in cloud:
            clock += 1 / device.prefill_rate
            read += 1
        released.append(max(clock, released[-1] + tau))
        while len(released) < output:
            released.append(released[-1] + 1 / device.decode_rate)
    return released, len(cloud), held, read


@st.composite
def chosen(draw):
    """Any settings at all, also such as no one would choose."""
    prompt, output, first_s, token_s = draw(many())
    n = prompt.size
    k, rho, feasible = (
        draw(st.lists(values, min_size=n, max_size=n)) for values in (st.integers(0, 310), shares, st.booleans())
    )
    if draw(st.booleans()):  # the answer ends about where the cloud would
        k = [max(int(tokens) + draw(st.integers(-3, 1)), 0) for tokens in output]
    load = dc.Workload(np.zeros(n), prompt, output)
    return load, first_s, token_s, Settings(k, rho, token_s, np.zeros(n), feasible)


@given(chosen(), devices, devices | st.none())
def test_equals_the_answer_token_by_token(case, device, planned):
    load, first_s, token_s, settings = case
    found = simulate_pd(load, settings, first_s, token_s, device, planned)
    for i in range(len(load)):
        length, output = int(load.prompt_tokens[i]), int(load.output_tokens[i])
        how = int(settings.k[i]), float(settings.rho[i]), settings.feasible[i], first_s[i], token_s[i]
        released, by_cloud, held, read = answer(length, output, *how, device, planned or device)
        by_device = output - by_cloud
        assert len(released) == output
        assert (found.ttft_s[i], found.finish_s[i]) == pytest.approx((released[0], released[-1]))
        gaps = np.diff(released)
        assert found.tpot_max_s[i] == pytest.approx(gaps.max() if gaps.size else math.nan, nan_ok=True, abs=1e-9)
        assert found.cloud_s[i] == pytest.approx(held)
        assert (found.cloud_tokens[i], found.device_tokens[i]) == (by_cloud, by_device)
        assert found.taken_over[i] == (by_cloud > 0 and by_device > 0)
        ledger = found.ledger
        assert (ledger.server_prefill[i], ledger.server_decode[i]) == (length, by_cloud)
        assert (ledger.device_prefill[i], ledger.device_decode[i]) == (read, by_device)


@given(many(), devices, limits_s, st.sampled_from([[1.0], [0.3], [0.1, 0.55, 1.0]]), st.data())
def test_chosen_settings_keep_the_limit_whatever_the_length_and_one_token_less_does_not(
    columns, device, limit, rho, data
):
    prompt, expected, first_s, token_s = columns
    settings = choose(first_s, token_s, device, prompt, expected, limit, rho, np.zeros(len(rho)))
    n = prompt.size
    output = np.array([data.draw(answers) for _ in range(n)])
    answered = simulate_pd(dc.Workload(np.zeros(n), prompt, output), settings, first_s, token_s, device)
    kept = settings.feasible & (output > 1)
    assert np.all(answered.tpot_max_s[kept] <= limit + 1e-9)
    less = Settings(np.maximum(settings.k - 1, 0), settings.rho, settings.tau_s, settings.ready_s, settings.feasible)
    endless = dc.Workload(np.zeros(n), prompt, np.full(n, 400))
    needed = settings.feasible & (settings.k > 0)
    broken = simulate_pd(endless, less, first_s, token_s, device).tpot_max_s
    assert np.all(broken[needed] > limit - 1e-9)


def test_the_cloud_is_relieved_and_the_reader_waits_no_longer_than_for_it():
    load = dc.Workload(np.zeros(3), [64, 512, 2048], [200, 200, 200])
    device = dc.DeviceProfile(400.0, 25.0)
    settings = choose(0.4, 0.02, device, load.prompt_tokens, 200, 0.05)
    ours, cloud, alone = (
        simulate_pd(load, settings, 0.4, 0.02, device),
        pd_device.cloud_only(load, 0.4, 0.02),
        pd_device.device_only(load, device),
    )
    assert settings.feasible.all()
    assert settings.k.tolist() == [
        0,
        18,
        99,
    ]  # ceil((l / p - C) / (s - 1 / p)) - 1; the first reads 64 tokens in 0.16 s
    assert ours.ttft_s.tolist() == np.minimum(cloud.ttft_s, alone.ttft_s).tolist()
    assert ours.cloud_tokens.tolist() == [0, 19, 100]
    assert ours.cloud_s == pytest.approx([0.16, 0.4 + 18 * 0.02, 0.4 + 99 * 0.02])
    gain = pd_device.throughput(ours.cloud_s, 8) / pd_device.throughput(cloud.cloud_s, 8)
    assert gain == pytest.approx(3 * 4.38 / (0.16 + 0.76 + 2.38))
    assert cloud.tpot_max_s.tolist() == [0.02] * 3
    assert alone.tpot_max_s.tolist() == [0.04] * 3
    assert alone.finish_s == pytest.approx(alone.ttft_s + 199 / 25)
    assert alone.ledger.device_prefill.tolist() == [64, 512, 2048]
    assert alone.ledger.cost(dc.CostModel(1, 1, 0, 0)).tolist() == [0, 0, 0]
    assert cloud.ledger.cost(dc.CostModel(0, 0, 1, 1)).tolist() == [0, 0, 0]
    assert pd_device.throughput(alone.cloud_s) == math.inf


def test_a_late_device_leaves_a_gap_and_an_early_one_waits_for_its_turn():
    load = dc.Workload([0.0], [500], [100])
    planned = dc.DeviceProfile(400.0, 25.0)
    settings = choose(0.4, 0.02, planned, [500], 100, 0.05)
    late, early = (
        simulate_pd(load, settings, 0.4, 0.02, dc.DeviceProfile(rate, 25.0), planned) for rate in (300.0, 450.0)
    )
    k = int(settings.k[0])
    assert late.tpot_max_s[0] == pytest.approx((500 + k + 1) / 300 - (0.4 + k * settings.tau_s[0]))
    assert late.tpot_max_s[0] > 0.05
    assert early.tpot_max_s[0] == pytest.approx(settings.tau_s[0])


def test_a_tie_is_the_clouds():
    load = dc.Workload([0.0], [20], [10])
    settings = choose(0.5, 0.02, DEVICE, [20], 10, 0.1)
    assert settings.ready_s.tolist() == [0.5 + 1 / 50]
    tied = simulate_pd(load, settings, 0.5, 0.02, DEVICE)
    assert (tied.ttft_s[0], tied.cloud_tokens[0], tied.taken_over[0]) == (0.5, 1, True)
    assert choose(0.6, 0.02, DEVICE, [20], 10, 0.1).ready_s.tolist() == [0.5]


ASKED = {
    "cloud_ttft_s": 0.5,
    "cloud_token_s": 0.02,
    "device": DEVICE,
    "prompt_tokens": [10, 20],
    "output_tokens": [50, 60],
    "tpot_limit_s": 0.1,
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cloud_ttft_s": -1}, r"cloud_ttft_s must be finite and non-negative seconds, got -1\.0"),
        (
            {"cloud_ttft_s": [0.1] * 3},
            r"cloud_ttft_s must be one number or one per request, shape \(2,\), got \(3,\)",
        ),
        ({"cloud_token_s": np.nan}, "cloud_token_s must be numbers, got nan"),
        ({"device": 3}, "device must be a DeviceProfile, got 3"),
        ({"prompt_tokens": [0, 1]}, "prompt_tokens must be whole numbers from 1"),
        ({"output_tokens": [1, 2, 3]}, "output_tokens must be one number or one per request"),
        ({"output_tokens": [[1], [2, 3]]}, "output_tokens must be numbers"),
        ({"output_tokens": 0}, "output_tokens must be whole numbers from 1"),
        ({"tpot_limit_s": 0}, "tpot_limit_s must be finite and above 0, got 0"),
        ({"rho": [0.0, 1.0]}, r"rho must be shares in \(0, 1\], got \[0\.0, 1\.0\]"),
        ({"rho": 1.5}, r"rho must be shares in \(0, 1\], got 1\.5"),
        ({"rho": [0.5, 1.0]}, r"loss is needed for every rho below 1, got rho 0\.5 without it"),
        ({"rho": [0.5, 1.0], "loss": [0.1]}, r"loss must be one per rho, 2, got shape \(1,\)"),
        ({"rho": [0.5], "loss": [0.1]}, r"loss must be at most loss_limit 0 for some rho, the least is 0\.1"),
        ({"rho": [0.5], "loss": lambda rho: None}, "loss must be numbers"),
        ({"loss_limit": -0.1}, r"loss_limit must be finite and at least 0, got -0\.1"),
    ],
)
def test_what_cannot_be_chosen_from_is_named(changed, words):
    assert choose(**ASKED).feasible.all()
    with pytest.raises(dc.InputError, match=words):
        choose(**ASKED | changed)


def test_what_cannot_be_simulated_is_named():
    load, settings = dc.Workload([0.0, 0.0], [10, 20], [50, 60]), choose(**ASKED)
    one = choose(**ASKED | {"prompt_tokens": [10], "output_tokens": 50})
    for match, arguments in [
        ("load must be a Workload", ([5], settings, 0.5, 0.02, DEVICE)),
        ("settings must be a Settings", (load, None, 0.5, 0.02, DEVICE)),
        ("settings must be one per request, 2, got 1", (load, one, 0.5, 0.02, DEVICE)),
        ("cloud_ttft_s", (load, settings, [0.5, np.inf], 0.02, DEVICE)),
        ("cloud_token_s", (load, settings, 0.5, [0.1] * 3, DEVICE)),
        ("device must be", (load, settings, 0.5, 0.02, None)),
        ("planned must be", (load, settings, 0.5, 0.02, DEVICE, 7)),
    ]:
        with pytest.raises(dc.InputError, match=match):
            simulate_pd(*arguments)
    for match, columns in [
        ("k must be finite and non-negative tokens, got -1", ([-1], [1.0], [0.1], [1.0], [True])),
        ("k must be whole", ([0.5], [1.0], [0.1], [1.0], [True])),
        (r"rho must lie in \(0, 1\], got 0", ([1], [0.0], [0.1], [1.0], [True])),
        ("tau_s", ([1], [1.0], [-0.1], [1.0], [True])),
        (r"rho must have one entry per request, shape \(1,\), got \(2,\)", ([1], [1, 1], [0.1], [1.0], [True])),
        (r"feasible must have one entry per request, shape \(1,\)", ([1], [1.0], [0.1], [1.0], [True, True])),
    ]:
        with pytest.raises(dc.InputError, match=match):
            Settings(*columns)
    with pytest.raises(dc.InputError, match="slots"):
        pd_device.throughput([1.0], 0)


@pytest.mark.parametrize(
    ("k", "feasible", "word"), [(1e300, True, "^k must"), (1, 0.5, "^feasible"), (1, "no", "^fea")]
)
def test_settings_that_are_none_are_named(k, feasible, word):
    with pytest.raises(dc.InputError, match=word):
        Settings([k], [1.0], [0.1], [1.0], [feasible])


def test_the_baseline_keeps_its_own_times():
    first = np.array([1.0, 2.0])
    alone = pd_device.cloud_only(dc.Workload([0, 0], [5, 5], [9, 9]), first, 0.05)
    first[:] = 9.0
    assert alone.ttft_s.tolist() == [1.0, 2.0]
