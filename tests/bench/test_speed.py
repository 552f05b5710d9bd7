"""How fast planning, drawing and simulating are: absolute times, and ratios to a plain transcription in one run.

Run by `make bench`, which prints the table of medians. That both sides say the same is tested in `make test`.
"""

import tracemalloc

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

import disco_core as dc
from artifact.analysis import transcription as plain

N = 100_000
MILLION = 1_000_000
B = 0.3


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(0).lognormal(-0.5, 0.8, N)


@pytest.fixture(scope="module")
def lengths():
    """As spread as alpaca's prompts: a few hundred different lengths."""
    return np.random.default_rng(1).lognormal(3.2, 0.6, N).astype(np.int64) + 8


@pytest.fixture(scope="module")
def ttft(samples):
    return dc.TTFTDistribution(samples)


def test_build_f(benchmark, samples):
    benchmark(dc.TTFTDistribution, samples)


def test_build_f_plain(benchmark, samples):
    benchmark.pedantic(plain.make_f, (samples.tolist(),), rounds=5)


def test_plan_disco_s(benchmark, lengths):
    benchmark(dc.plan_server_constrained, lengths, B)


def test_plan_disco_s_plain(benchmark, lengths):
    benchmark.pedantic(plain.server_constrained, (lengths.tolist(), B), rounds=9)


def test_plan_disco_d(benchmark, lengths, ttft):
    benchmark(dc.plan_device_constrained, lengths, ttft, B)


def test_plan_disco_d_plain(benchmark, lengths, samples):
    f = plain.make_f(samples.tolist())
    benchmark.pedantic(plain.device_constrained, (lengths.tolist(), f, B), rounds=9)


@pytest.mark.parametrize("constraint", dc.Constraint)
def test_plan_optimal(benchmark, lengths, ttft, ends, constraint):
    """Given F and the histogram of lengths."""
    benchmark(dc.plan_optimal, dc.LengthDistribution.of(lengths), ttft, ends[1], B, constraint)


def test_f_and_plan_optimal(benchmark, lengths, samples, ends):
    benchmark(lambda: dc.plan_optimal(lengths, dc.TTFTDistribution(samples), ends[1], B, dc.Constraint.DEVICE))


def test_linear_programme(benchmark, samples, lengths, ends):
    """What the optimal plan does without: the least mean for one deadline, 500 waits and 300 lengths, by HiGHS."""
    ttft, tokens = (
        dc.TTFTDistribution(np.quantile(samples, np.arange(1, 501) / 500)),
        np.quantile(lengths, np.arange(1, 301) / 300),
    )
    first_s = ttft.values_s + ends[1].ttft(tokens)[:, None]
    share = tokens[:, None] * ttft.sf(ttft.values_s) / tokens.mean()
    late = (first_s > 2.5) * ttft.sf(2.5)
    limits = np.stack([share.ravel(), late.ravel()]) / tokens.size
    each = scipy.sparse.kron(scipy.sparse.eye(tokens.size), np.ones((1, 500)), "csr")

    def solve():
        costs = ttft.mean_min(first_s).ravel()
        return scipy.optimize.linprog(costs, limits, [B, 0.01], each, np.ones(tokens.size), method="highs")

    assert benchmark.pedantic(solve, rounds=3).status == 0


@pytest.mark.parametrize("kind", ["DiSCo-D", "DiSCo-S", "Stoch-D"])
def test_draw(benchmark, lengths, ttft, kind):
    plan = {
        "DiSCo-D": lambda: dc.plan_device_constrained(lengths, ttft, B),
        "DiSCo-S": lambda: dc.plan_server_constrained(lengths, B),
        "Stoch-D": lambda: dc.plan_stochastic(B, dc.Constraint.DEVICE),
    }[kind]()
    asked, rng = np.tile(lengths, 10), np.random.default_rng(2)
    benchmark(plan.draw, asked, rng)


def workload(lengths, n):
    asked = np.tile(lengths, n // lengths.size)
    return dc.Workload(np.arange(n, dtype=np.float64), asked, asked)


@pytest.fixture(scope="module")
def ends(ttft):
    return dc.ServerProfile(ttft, 50.0), dc.DeviceProfile(31.32, 13.93)


@pytest.mark.parametrize("n", [MILLION, 10 * MILLION])
def test_simulate(benchmark, lengths, ttft, ends, n):
    load, plan = workload(lengths, n), dc.plan_device_constrained(lengths, ttft, B)
    rng = np.random.default_rng(3)
    benchmark.pedantic(
        dc.simulate, (load, plan, *ends), {"rng": rng}, rounds=9 if n == MILLION else 3, warmup_rounds=1
    )


def test_simulate_memory(benchmark, lengths, ttft, ends):
    """Peak of what simulate allocates beyond its input, bytes a request; NumPy reports to tracemalloc."""
    load, plan = workload(lengths, MILLION), dc.plan_device_constrained(lengths, ttft, B)
    plan.draw(load.prompt_tokens[:1], np.random.default_rng(0))

    def peak():
        tracemalloc.start()
        result = dc.simulate(load, plan, *ends, dc.CostModel(1e-6, 1e-6, 1e-6, 1e-6), rng=np.random.default_rng(3))
        bytes_a_request = tracemalloc.get_traced_memory()[1] / len(load)
        tracemalloc.stop()
        assert len(result.ttft_s) == len(load)
        return bytes_a_request

    benchmark.extra_info["bytes_a_request"] = benchmark.pedantic(peak, rounds=1)
