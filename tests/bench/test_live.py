"""What a live stream costs: its first token, each token, many at once, a long one, and thousands in turn.

Everything runs on a real event loop in this process; the endpoints take no time of their own except to sleep.
"""

import asyncio
import gc
import time
import tracemalloc
from contextlib import aclosing

import numpy as np
import pytest

import disco_core as dc
from disco_core.endpoints.base import Endpoint, Generation, Prefix, Token
from disco_core.systems.pd_device import plan_together

ANSWER = 200
PROMPT = [0] * 40
QUARTILES = [0.5, 0.25, 0.75]
TTFT = dc.TTFTDistribution([0.2, 0.3, 0.4, 0.9])
DEVICE = dc.DeviceProfile(100.0, 10.0)


class Steady(Endpoint):
    """The first token after `ttft_s`, then one after each `gap_s`; `gap_s` None: as soon as it is asked for."""

    vocabulary, continues = "integers", True

    def __init__(self, name, ttft_s, gap_s, length):
        self.name, self.ttft_s, self.gap_s, self.length = name, ttft_s, gap_s, length

    def count(self, prompt):
        return len(prompt)

    def generate(self, prefix):
        return Generation(self._tokens(prefix))

    async def _tokens(self, prefix):
        await asyncio.sleep(self.ttft_s)
        first = len(prefix.generated)
        for index in range(first, min(self.length, first + prefix.max_tokens)):
            if index > first and self.gap_s is not None:
                await asyncio.sleep(self.gap_s)
            yield Token(index, f" {index}", index)


def ends(ttft_s, gap_s, length):
    return {name: Steady(name, ttft_s, gap_s, length) for name in ("server", "device")}


def asked_always():
    """A rule that is asked at each token and never moves: the answer is expected to be too short for that."""
    lengths = dc.LengthDistribution([10 * ANSWER], [1])
    return dc.MigrationRule(dc.CostModel(0, 1e-6, 0, 1e-7), lengths, TTFT, dc.DeviceProfile(0.1, 10.0))


def moving():
    """A rule that hands over to the device as soon as its buffer is full."""
    return dc.MigrationRule(dc.CostModel(0, 1e-3, 0, 0), dc.LengthDistribution([100_000], [1]), TTFT, DEVICE)


def summary(values):
    return np.quantile(values, QUARTILES, axis=0).T.tolist()


async def timed(tokens):
    """Seconds to the first token, and from one to the next."""
    began = time.perf_counter()
    async with aclosing(tokens) as answer:
        at = [time.perf_counter() async for _ in answer]
    assert len(at) == ANSWER
    return at[0] - began, (at[-1] - at[0]) / (ANSWER - 1)


def test_stream_overhead(benchmark):
    """`stream` over a direct call of the same endpoint, by turns: with a rule, without, and with a race."""
    both, rule = ends(0.005, 0.0, ANSWER), asked_always()

    async def streamed(rule, plan):
        live = dc.stream(PROMPT, plan=plan, **both, rule=rule, max_tokens=ANSWER, wait=False)
        async for token in live:
            yield token
        assert live.record.complete
        assert not live.record.migrated_at

    async def by_turns():
        found = []
        for _ in range(200):
            bare = await timed(both["server"].generate(Prefix(PROMPT, (), ANSWER)))
            over = await timed(streamed(rule, dc.plan_server_only()))
            without = await timed(streamed(None, dc.plan_server_only()))
            raced = await timed(streamed(rule, plan_together()))
            found.append((over[0] - bare[0], raced[0] - bare[0], over[1] - bare[1], without[1] - bare[1]))
        return summary(found)

    found = benchmark.pedantic(lambda: asyncio.run(by_turns()), rounds=1, warmup_rounds=1)
    names = "first_token_s", "raced_first_token_s", "token_s", "without_rule_s"
    benchmark.extra_info |= dict(zip(names, found, strict=True))


TOKENS, LASTS_S = 24, 5.0  # of each concurrent answer: it is read in so many seconds, at 4.8 tokens a second


async def concurrent(n):
    """Seconds of release error of each token while `n` streams are read at once, and of CPU per token.

    Streams begin one after the other at an even pace, for twice as long as each lasts, so that `n` run from the
    first one's end to the last one's beginning. The errors are those of the streams that began in that time.
    """
    loop, both, rule = asyncio.get_running_loop(), ends(0.2, 0.02, TOKENS), asked_always()
    start = loop.time() + 0.5

    async def read(i):
        await asyncio.sleep(start + i * LASTS_S / n - loop.time())
        live = dc.stream(PROMPT, plan=dc.plan_server_only(), **both, rule=rule, max_tokens=TOKENS)
        async for _ in live:
            pass
        assert live.record.complete
        return live.record.late_s

    began = time.process_time()
    late = await asyncio.gather(*(read(i) for i in range(2 * n)))
    cpu = time.process_time() - began
    return np.concatenate(late[n // 2 :]), cpu / (2 * n * TOKENS)


@pytest.mark.parametrize(("n", "collector"), [(500, True), (500, False), (1000, True), (1000, False), (4000, True)])
def test_concurrent_streams(benchmark, n, collector):
    """Also without Python's cyclic garbage collector, whose pauses are most of the largest errors."""
    found = []

    def run():
        gc.collect()
        if not collector:
            gc.disable()
        try:
            errors, cpu = asyncio.run(concurrent(n))
        finally:
            gc.enable()
        found.append((np.median(errors), np.quantile(errors, 0.99), errors.max(), cpu))

    benchmark.pedantic(run, rounds=3)
    names = "median_s", "p99_s", "max_s", "cpu_a_token_s"
    benchmark.extra_info |= dict(zip(names, summary(found), strict=True))


LONG, BLOCK = 100_000, 10_000


async def long_answer(rule):
    """A stream of LONG tokens that are read at once, and the loop's time at the end of each block."""
    both = ends(0.0, None, LONG)
    live = dc.stream(
        PROMPT, plan=dc.plan_server_only(), **both, rule=rule, max_tokens=LONG, reading_rate=1e9, stall_s=600.0
    )
    at = [time.perf_counter()]
    async for token in live:
        if token.index % BLOCK == BLOCK - 1:
            at.append(time.perf_counter())
    assert live.record.complete
    assert len(live.record.tokens) == LONG
    return live, np.diff(at) / BLOCK


def test_long_answer(benchmark):
    """Whether a token costs as much at the end of a long answer as at its beginning, and what it leaves behind."""
    _, a_token_s = benchmark.pedantic(lambda: asyncio.run(long_answer(asked_always())), rounds=1, warmup_rounds=1)
    tracemalloc.start()
    live, _ = asyncio.run(long_answer(asked_always()))
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] / len(live.record.tokens)
    tracemalloc.stop()
    early, late = (summary(blocks) for blocks in (a_token_s[:5], a_token_s[5:]))
    benchmark.extra_info |= {"early_s": early, "late_s": late, "bytes_a_token": [kept] * 3}


IN_TURN = 2000


def test_streams_in_turn(benchmark):
    """What 2,000 streams one after another leave behind: races, hand-overs and readers that leave."""

    async def one(i, both, rule):
        plan = dc.plan_server_only() if i % 2 else plan_together()
        live = dc.stream(PROMPT, plan=plan, **both, rule=rule, max_tokens=12, reading_rate=1e9)
        async with live:
            async for token in live:
                if i % 5 == 0 and token.index == 3:
                    break
        assert live.record.complete or i % 5 == 0

    async def many():
        both, rule = ends(0.0, 0.0, 12), moving()
        sizes = {}
        for i in range(IN_TURN):
            await one(i, both, rule)
            if i + 1 in (IN_TURN // 4, IN_TURN):
                await asyncio.sleep(0.01)
                gc.collect()
                sizes[i + 1] = tracemalloc.get_traced_memory()[0], len(asyncio.all_tasks())
        return sizes

    def run():
        tracemalloc.start()
        sizes = asyncio.run(many())
        tracemalloc.stop()
        return sizes

    (early, _), (late, tasks) = benchmark.pedantic(run, rounds=1).values()
    growth = (late - early) / (IN_TURN * 3 // 4)
    benchmark.extra_info |= {"bytes_a_stream": [growth] * 3, "tasks": [tasks - 1] * 3}
