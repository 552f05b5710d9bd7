"""Answers of live endpoints as rows of a table, shared by all measuring sessions."""

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from artifact.measure.pieces import Tables
from disco_core.cost import End
from disco_core.delivery import quality_of_experience, time_between_tokens
from disco_core.endpoints.base import Endpoint, Prefix, Token
from disco_core.errors import InputError, StreamError
from disco_core.latency import DeviceProfile
from disco_core.live.stream import Run
from disco_core.record import Record, StreamedToken

T = TypeVar("T")
CHARGES = ["server_prefill", "server_decode", "device_prefill", "device_decode"]  # in the order of a ledger


def run_in_thread(work: Coroutine[Any, Any, Tables]) -> Tables:
    """The result of the work; in a thread if an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    loop = asyncio.new_event_loop()

    def beside() -> Tables:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(work)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(beside)
        try:
            return done.result()
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
            raise


def request_row(record: Record) -> dict[str, Any]:
    """The row of an answer: charges, TTFT, hand-over, delays, pace, quality of experience, failures."""
    charges = dict[str, Any]()
    for end in End:
        name = end.name.lower()
        charges[f"{name}_started"] = record.started[end]
        charges |= {f"{name}_prefill": record.prefill[end], f"{name}_decode": record.decode[end]}
    at, tokens = record.migrated_at, record.tokens
    released = [token.released_s for token in tokens]
    gaps = time_between_tokens(released) if tokens else np.empty(0)
    return charges | {
        "ttft_s": record.ttft_s,
        "winner": None if record.winner is None else record.winner.name.lower(),
        "tokens": len(tokens),
        "migrated_at": at,
        "takeover_s": tokens[at].generated_s - tokens[at - 1].generated_s if 0 < at < len(tokens) else None,
        "delay_num": record.delay_num,
        "tbt_p99_s": np.quantile(gaps, 0.99, method="inverted_cdf") if gaps.size else None,
        "qoe": quality_of_experience(released) if tokens else None,
        "refusals": "; ".join(record.refusals),
        "failures": "; ".join(map(str, record.failures)),
    }


def token_row(token: StreamedToken) -> dict[str, Any]:
    """The row of a token."""
    return {
        "token": token.index,
        "source": token.source.name.lower(),
        "id": token.id,
        "text": token.text,
        "generated_s": token.generated_s,
        "released_s": token.released_s,
    }


async def recorded(run: Run) -> Record:
    """The record of a stream after it has ended, also if neither endpoint could continue."""
    async with aclosing(run):
        with suppress(StreamError):  # the record has it
            async for _ in run:
                pass
    return run.record


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """The results of several coroutines; if one fails, the others are cancelled and awaited first."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def timed_answer(end: Endpoint, prompt: str, n: int, begun: Sequence[Token] = ()) -> list[tuple[Token, float]]:
    """The answer of one endpoint, or its continuation, up to n tokens in all; each with seconds since the request."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with aclosing(end.generate(Prefix(prompt, tuple(begun), n - len(begun)))) as tokens:
        return [(token, loop.time() - start) async for token in tokens]


def device_profile(pairs: pd.DataFrame, rates: pd.DataFrame) -> DeviceProfile:
    """The device's profile from pairs and rates: a fitted line, or one through the origin if
    noise makes the slope negative.
    """
    length, time, rate = pairs["prompt_tokens"], pairs["device_s"], decode_rate("device", rates)
    try:
        return DeviceProfile.fit(length, time, rate)
    except InputError:
        return DeviceProfile(float(length @ length / (length @ time)), rate)


def decode_rate(end: str, rates: pd.DataFrame) -> float:
    """Tokens per second of one endpoint: the inverse of its median gap between tokens."""
    return float(1 / rates.loc[rates["end"] == end, "gap_s"].median())
