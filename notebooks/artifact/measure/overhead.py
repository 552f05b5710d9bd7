"""Time and memory of planning and deciding on this machine, compared with a plain transcription of the algorithms.

All tasks are timed in turn, in random order and in one process, so that a temporary slowdown of the machine affects
all of them; the first call of each, which loads and caches, is not recorded. Memory is the peak that a call allocates
beyond its input, measured by tracemalloc (to which NumPy reports) in a separate call, since tracing takes time.
"""

import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from artifact.analysis import transcription
from artifact.data import traces
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.cost import CostModel
from disco_core.dispatch import plan_device_constrained, plan_server_constrained
from disco_core.latency import ServerProfile, TTFTDistribution
from disco_core.migration import MigrationRule
from disco_core.simulate import simulate
from disco_core.workload import LengthDistribution, Workload

PAPER = 100_000  # samples to which the paper's times refer
TABLES = ("ttft_quantiles", "prompt_tokens", "output_tokens")
OURS, PLAIN = "disco-core", "transcription"
BUDGET = 0.3  # b
CALLS = 200  # decisions that are timed together, since one is too short for the clock


class Work(NamedTuple):
    """A task to time: its name, the implementation, the number of samples, and the calls in one run of it."""

    name: str
    by: str
    n: int
    run: Callable[[], object]
    calls: int = 1


def measure(run: Run) -> Tables:
    """Time every task at each of `sizes`, `repeats` times, then measure its memory; `seed` of samples and orders.

    One table, values: work, by (disco-core or transcription), n (samples), repeat, unit, value; unit s: seconds of
    one call, unit bytes: its peak memory. Beyond 100,000 samples only every fifth repeat is made.

    InputError for sizes or repeats below 1.
    """
    s = run.settings
    sizes, repeats = checks.tokens(s.sizes, "sizes"), checks.count(s.repeats, "repeats")
    rng = np.random.default_rng(s.seed)
    every = [work for n in sizes for work in works(int(n), rng)]
    for work in every:
        work.run()
    run.expect(repeats + 1, "round")
    rows = []
    for repeat in range(repeats):
        order = rng.permutation(len(every)).tolist()
        rows += run.piece_now(f"round {repeat}", partial(_round, [every[k] for k in order], repeat))
    rows += run.piece_now("memory", lambda: [(*work[:3], 0, "bytes", _peak(work.run)) for work in every])
    table = pd.DataFrame(rows, columns=["work", "by", "n", "repeat", "unit", "value"])
    return {"values": table.sort_values(["unit", "n", "work", "by", "repeat"], ignore_index=True)}


def _round(works: Sequence[Work], repeat: int) -> list[tuple[Any, ...]]:
    rows = []
    for work in works:
        if work.n > PAPER and repeat % 5:
            continue
        start = time.perf_counter()
        work.run()
        rows.append((*work[:3], repeat, "s", (time.perf_counter() - start) / work.calls))
    return rows


def works(n: int, rng: np.random.Generator) -> list[Work]:
    """The tasks for n samples: TTFTs of deepseek-chat, prompts and answers of Alpaca.

    Planning starts from observed lengths and an existing F. A decision is about one request or one token, as in a
    live stream, with a plan and a rule made from n samples.
    """
    samples, prompts, answers = _sampled(n, rng)
    listed, lengths, f = samples.tolist(), prompts.tolist(), transcription.make_f(samples.tolist())
    ttft, device = TTFTDistribution(samples), traces.devices()["Xiaomi 14 + Qwen1.5-0.5B"]
    plan = plan_device_constrained(prompts, ttft, BUDGET)
    # with these prices the answer can migrate; their values do not affect the time
    rule = MigrationRule(CostModel(1e-7, 1e-6, 1e-8, 1e-7), LengthDistribution.of(answers), ttft, device)
    load, server = Workload(np.arange(n, dtype=np.float64), prompts, answers), ServerProfile(ttft, 50.0)
    asked, draws = [prompts[k % n : k % n + 1] for k in range(CALLS)], np.random.default_rng(0)
    return [
        Work("build F", OURS, n, lambda: TTFTDistribution(samples)),
        Work("build F", PLAIN, n, lambda: transcription.make_f(listed)),
        Work("plan DiSCo-S", OURS, n, lambda: plan_server_constrained(prompts, BUDGET)),
        Work("plan DiSCo-S", PLAIN, n, lambda: transcription.server_constrained(lengths, BUDGET)),
        Work("plan DiSCo-D", OURS, n, lambda: plan_device_constrained(prompts, ttft, BUDGET)),
        Work("plan DiSCo-D", PLAIN, n, lambda: transcription.device_constrained(lengths, f, BUDGET)),
        Work("decide a request", OURS, n, lambda: [plan.draw(length, draws) for length in asked], CALLS),
        Work("decide a token", OURS, n, lambda: [rule.moves(40, k, k / 20) for k in range(CALLS)], CALLS),
        Work("simulate", OURS, n, lambda: simulate(load, plan, server, device, rng=np.random.default_rng(0))),
    ]


def _sampled(n: int, rng: np.random.Generator) -> tuple[Floats, Ints, Ints]:
    # the table is rounded to 0.1 ms; the samples are spread within that, so that no two are equal
    samples = traces.service("deepseek-chat").ttft.sample(n, rng) + rng.uniform(0.0, 1e-4, n)
    return samples, traces.lengths("alpaca").sample(n, rng), traces.lengths("alpaca", "output").sample(n, rng)


def _peak(run: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
