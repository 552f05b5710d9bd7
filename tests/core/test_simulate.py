"""The vectorised race against one request at a time, event by event, in the plainest Python."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import disco_core as dc
from tests.helpers.reference import race
from tests.helpers.strategies import devices, distributions, plans

PRICES = dc.CostModel(1e-6, 2e-6, 3e-6, 5e-6)


@st.composite
def requests(draw):
    n = draw(st.integers(1, 12))
    whole = st.integers(1, 12)
    prompt = [draw(whole) for _ in range(n)]
    output = [draw(whole) for _ in range(n)]
    return dc.Workload(np.arange(n) * 1.0, prompt, output)


@given(requests(), plans(), distributions, devices, st.integers(0, 2**32 - 1))
def test_equals_the_event_by_event_reference(load, plan, ttft, device, seed):
    server = dc.ServerProfile(ttft, 50.0)
    result = dc.simulate(load, plan, server, device, PRICES, rng=np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    server_ttft = ttft.sample(len(load), rng)
    delays = plan.draw(load.prompt_tokens, rng)
    for i in range(len(load)):
        length, output = int(load.prompt_tokens[i]), int(load.output_tokens[i])
        device_ttft = length / device.prefill_rate + device.startup
        expected, winner, started = race(float(delays[0, i]), float(delays[1, i]), float(server_ttft[i]), device_ttft)
        assert result.ttft_s[i] == pytest.approx(expected, abs=1e-9)
        assert dc.End(result.winner[i]).name.lower() == winner
        # at a tie the device, which loses it, has made its first token as well
        tied = len(started) == 2 and delays[0, i] + server_ttft[i] == delays[1, i] + device_ttft
        charged = {
            "server": (length * ("server" in started), output * (winner == "server")),
            "device": (length * ("device" in started), output * (winner == "device") + tied),
        }
        ledger = result.ledger
        assert (ledger.server_prefill[i], ledger.server_decode[i]) == charged["server"]
        assert (ledger.device_prefill[i], ledger.device_decode[i]) == charged["device"]
        (sp, sd), (dp, dd) = charged["server"], charged["device"]
        assert result.cost[i] == pytest.approx(1e-6 * sp + 2e-6 * sd + 3e-6 * dp + 5e-6 * dd, rel=1e-9)
    shares = [
        sum(x[i] for i in range(len(load))) / sum(load.prompt_tokens)
        for x in (ledger.server_prefill, ledger.device_prefill)
    ]
    assert [result.server_share, result.device_share] == pytest.approx(shares, abs=1e-9)


@given(requests(), plans(), distributions, devices, st.data())
def test_given_times_replace_the_draws(load, plan, ttft, device, data):
    n = len(load)
    ms = st.integers(0, 20).map(lambda t: t / 1000)
    grid = np.array([[data.draw(ms) for _ in range(n)] for _ in range(4)])
    grid[1] += 0.001  # a device needs some time
    result = dc.simulate(load, plan, dc.ServerProfile(ttft, 50.0), device, ttft_s=grid[:2], delays_s=grid[2:])
    for i in range(n):
        expected, winner, started = race(*grid[2:, i], *grid[:2, i])
        assert result.ttft_s[i] == expected
        assert (result.winner[i] == dc.End.DEVICE) == (winner == "device")
        assert result.device_started[i] == ("device" in started)
        assert result.server_started[i] == ("server" in started)


def test_simulated_mean_is_the_closed_form():
    """E[TTFT | l] = sum over choices of p E[min(S, w + T_d(l))]: mean_min knows nothing of simulate."""
    rng = np.random.default_rng(3)
    ttft = dc.TTFTDistribution(rng.lognormal(-1, 0.8, 500))
    device = dc.DeviceProfile(40.0, 14.0, 0.05)
    lengths = dc.LengthDistribution(np.arange(5, 45, 5), np.arange(8, 0, -1))
    plan = dc.plan_device_constrained(lengths, ttft, 0.4)
    n = 400_000
    load = dc.Workload(np.zeros(n), lengths.sample(n, rng), np.ones(n))
    result = dc.simulate(load, plan, dc.ServerProfile(ttft, 50.0), device, rng=rng)
    waits = plan.delays_s[dc.End.DEVICE]
    mean = (plan.probability * ttft.mean_min(waits + device.ttft(lengths.tokens)[:, None])).sum(axis=1)
    expected = (mean * lengths.counts).sum() / lengths.counts.sum()
    assert result.ttft_s.mean() == pytest.approx(expected, abs=5 * result.ttft_s.std() / np.sqrt(n))


def test_summary_names_what_it_says():
    load = dc.Workload(np.zeros(4), [1, 2, 3, 4], [10, 10, 10, 10])
    server = dc.ServerProfile(dc.TTFTDistribution([0.5]), 50.0)
    device = dc.DeviceProfile(10.0, 10.0)
    summary = dc.simulate(load, dc.plan_server_only(), server, device, PRICES, rng=np.random.default_rng(0)).summary()
    assert summary["p99_ttft_s"] == summary["mean_ttft_s"] == 0.5
    assert math.isnan(summary["budget_used"])
    assert summary["mean_cost"] == pytest.approx(2.5e-6 + 20e-6)
    plan = dc.plan_server_constrained([1, 2, 3, 4], 0.7)
    result = dc.simulate(load, plan, server, device, ttft_s=[0.5] * 4)
    assert result.summary()["budget_used"] == result.server_share == 0.7
    assert math.isnan(result.summary()["mean_cost"])
    assert result.winner.tolist() == [dc.End.DEVICE] * 4  # at 4 tokens 0.4 s beats the server's 0.5 s


def test_summary_quantiles_are_samples():
    load = dc.Workload(np.zeros(100), np.ones(100), np.ones(100))
    server, device = dc.ServerProfile(dc.TTFTDistribution([0.5]), 50.0), dc.DeviceProfile(10.0, 10.0)
    summary = dc.simulate(load, dc.plan_server_only(), server, device, ttft_s=np.arange(100, 0, -1)).summary()
    found = [summary[name] for name in ("mean_ttft_s", "p50_ttft_s", "p95_ttft_s", "p99_ttft_s")]
    assert found == [50.5, 50, 95, 99]


def test_the_budget_used_is_the_constrained_endpoints_share():
    load = dc.Workload(np.zeros(3), [10, 20, 30], [1, 1, 1])
    ttft = dc.TTFTDistribution([0.5])
    server, device = dc.ServerProfile(ttft, 50.0), dc.DeviceProfile(1000.0, 10.0, startup=0.1)
    plan = dc.plan_device_constrained([10, 20, 30], ttft, 0.5)
    result = dc.simulate(load, plan, server, device, ttft_s=[0.5] * 3, delays_s=[[0] * 3, [0, 0, np.inf]])
    assert result.budget_used == result.device_share == 0.5
    assert result.server_share == 1.0
    assert result.ttft_s == pytest.approx([0.11, 0.12, 0.5])
    alone = dc.simulate(load, plan, server, device, ttft_s=[0.5] * 3, delays_s=[[np.inf] * 3, [0] * 3])
    assert alone.server_share == 0.0


def test_an_endpoint_without_prices_is_free():
    load = dc.Workload([0.0], [5], [7])
    server, device = dc.ServerProfile(dc.TTFTDistribution([0.5]), 50.0), dc.DeviceProfile(1.0, 10.0)
    prices = dc.CostModel(0, 0.5e-6, 0, 0)
    assert dc.simulate(load, dc.plan_server_only(), server, device, prices, ttft_s=[0.5]).cost == pytest.approx(
        3.5e-6
    )


def test_answers_at_the_moment_of_the_start_are_the_servers():
    load = dc.Workload([0.0], [5], [7])
    server, device = dc.ServerProfile(dc.TTFTDistribution([0.5]), 50.0), dc.DeviceProfile(1.0, 10.0)
    zero = [[0.0], [0.0]]
    result = dc.simulate(load, dc.plan_server_only(), server, device, ttft_s=zero, delays_s=zero)
    assert (result.winner[0], result.server_started[0], result.device_started[0]) == (dc.End.SERVER, True, False)


def test_a_tie_goes_to_the_server_and_a_late_device_is_not_started():
    load = dc.Workload([0.0, 0.0], [5, 5], [1, 1])
    server, device = dc.ServerProfile(dc.TTFTDistribution([0.5]), 50.0), dc.DeviceProfile(10.0, 10.0)
    delays = [[0.0, 0.0], [0.0, 0.5]]
    result = dc.simulate(load, dc.plan_server_only(), server, device, ttft_s=[0.5, 0.5], delays_s=delays)
    assert result.winner.tolist() == [0, 0]
    assert result.device_started.tolist() == [True, False]


def test_bad_replacements_are_named():
    load = dc.Workload([0.0], [5], [1])
    server, device = dc.ServerProfile(dc.TTFTDistribution([0.5]), 50.0), dc.DeviceProfile(10.0, 10.0)
    plan = dc.plan_server_only()
    for arguments in [
        ([5], plan, server, device),
        (load, None, server, device),
        (load, plan, server.ttft, device),
        (load, plan, server, server),
        (load, plan, server, device, (1, 1, 1, 1)),
    ]:
        with pytest.raises(dc.InputError, match="must be a"):
            dc.simulate(*arguments, rng=np.random.default_rng(0))
    for match, given_ in [
        ("Generator", {"rng": 0}),
        ("numbers", {"ttft_s": [[1, 2], [3]]}),
        ("rng", {}),
        (r"\(1,\)", {"ttft_s": [0.1, 0.2]}),
        ("nan", {"ttft_s": [float("nan")]}),
        (r"-1\.0", {"ttft_s": [-1.0]}),
        ("delays_s", {"ttft_s": [0.1], "delays_s": [[0.0]]}),
        ("neither end", {"ttft_s": [0.1], "delays_s": [[np.inf], [np.inf]]}),
    ]:
        with pytest.raises(dc.InputError, match=match):
            dc.simulate(load, plan, server, device, **given_)


@pytest.mark.parametrize("rate", [3.3, 4.8, 8.0, 10.0])
def test_an_endpoint_as_fast_as_its_reader_is_never_late(rate):
    load, ttft = dc.Workload([0.0], [4], [100]), dc.TTFTDistribution([1.0])
    rule = dc.MigrationRule(PRICES, dc.LengthDistribution.of([100]), ttft, dc.DeviceProfile(9, 9), reading_rate=rate)
    server, device = dc.ServerProfile(ttft, rate), dc.DeviceProfile(9, 9)
    result = dc.simulate(load, dc.plan_server_only(), server, device, PRICES, rule, ttft_s=[1.0])
    assert result.delay_num[0] == dc.delayed(1.0 + np.arange(100) / rate, rate).sum() == 0
