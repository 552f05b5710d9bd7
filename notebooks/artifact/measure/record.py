"""A server under load: the rate at which it saturates, and the TTFT of requests that come at a share of it.

*Saturation.* A closed loop: c clients each send their next request when the last is answered, with c = 1, 2, 4, ...
until two doublings together add less than `GROWTH` to the requests answered per second. The highest rate of any step
is the saturation rate; a load is a share of it. GuideLLM's sweep (its profile `sweep`) takes the same two ends, one
request at a time and as many as possible, and rates between them; doubling finds how many are as many as possible.

*Load.* An open loop: a request is sent when it is due, whatever is still running. TTFT counts from when it was due,
so that waiting in the client counts.

Everything runs on the event loop's clock and with any endpoint.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from artifact.data import traces
from artifact.errors import ArtifactError
from artifact.measure.answers import together
from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.endpoints.base import Endpoint, Prefix, Prompt, sleep_until
from disco_core.errors import EndpointError
from disco_core.workload import LengthDistribution

GROWTH = 0.05  # of the requests per second, that two doublings of the clients have to add
FEWEST, WAVES = 24, 6  # requests of a step of the closed loop: at least so many, and so many for each client
MOST_CLIENTS = 256
COLUMNS = ["arrival_s", "prompt_tokens", "output_tokens", "ttft_s"]  # of a record that `pair.readers` reads
Row = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """One request: the prompt, its tokens as counted before it is sent, and the most tokens of its answer."""

    prompt: Prompt
    prompt_tokens: int
    max_tokens: int


async def answered(endpoint: Endpoint, ask: Ask, due: float, arrival_s: float) -> Row:
    """The row of one request that was due at a time of the loop's clock: `COLUMNS`, done_s and failure.

    ttft_s     seconds from when it was due to the first token with text that is no reasoning; None if none came
    done_s     seconds from when it was due to the last token; None if it failed
    failure    why it failed, or ""
    """
    loop, n, ttft_s, done_s = asyncio.get_running_loop(), 0, None, None
    row = {"arrival_s": arrival_s, "prompt_tokens": ask.prompt_tokens, "output_tokens": None, "ttft_s": None}
    answer = endpoint.generate(Prefix(ask.prompt, (), ask.max_tokens))
    try:
        async with aclosing(answer):
            async for token in answer:
                n, done_s = n + (not token.reasoning), loop.time() - due
                if ttft_s is None and token.text and not token.reasoning:
                    ttft_s = done_s
    except EndpointError as error:
        return row | {"done_s": None, "failure": str(error)}
    prompt, completion = getattr(answer, "billed", None) or (0, 0)  # as a server that reports them counts them
    row |= {"prompt_tokens": prompt or ask.prompt_tokens}
    if ttft_s is None:
        return row | {"done_s": None, "failure": f"{endpoint.name}: an answer without text"}
    return row | {"output_tokens": completion or n, "ttft_s": ttft_s, "done_s": done_s, "failure": ""}


async def closed_loop(endpoint: Endpoint, asks: Sequence[Ask], clients: int) -> tuple[float, list[Row]]:
    """Requests answered per second while so many clients are busy, and a row for each request.

    The time in which not all are busy is left out: the rate counts answers from the end of the first wave, one for
    each client, until the first client has nothing left to send. NaN where no answer came in it.
    """
    loop = asyncio.get_running_loop()
    start, waiting, rows = loop.time(), iter(asks), list[Row]()
    times = list[float]()

    async def client() -> None:
        for ask in waiting:
            rows.append(await answered(endpoint, ask, (sent := loop.time()), sent - start))
            if not rows[-1]["failure"]:
                times.append(loop.time())

    await together(*(client() for _ in range(clients)))
    if len(times) < 2 * clients:
        return float("nan"), rows
    ended = np.sort(times)
    begin, end = ended[clients - 1], ended[-clients]
    counted = np.searchsorted(ended, end, "right") - np.searchsorted(ended, begin, "right")
    return float(counted / (end - begin)) if end > begin else float("nan"), rows


async def saturation(
    endpoint: Endpoint,
    asks: Callable[[int], Awaitable[Sequence[Ask]]],
    *,
    fewest: int = FEWEST,
    say: Callable[[str], None] = lambda text: None,
) -> pd.DataFrame:
    """The steps of the closed loop: clients, requests, failed, and rate in requests per second.

    asks   so many requests, others at each call
    The saturation rate is the largest `rate`. A step in which requests fail is the last: the server refuses more.
    ArtifactError if the server answers too few requests of one client to tell a rate.
    """
    steps, clients = list[Row](), 1
    while clients <= MOST_CLIENTS:
        n = max(fewest, WAVES * clients)
        rate, rows = await closed_loop(endpoint, await asks(n), clients)
        failed = [row["failure"] for row in rows if row["failure"]]
        if np.isnan(rate) and clients == 1:
            first = f"; the first: {failed[0]}" if failed else ""
            raise ArtifactError(f"no rate can be told: {len(failed)} of {n} requests failed, sent one by one{first}")
        steps.append({"clients": clients, "requests": n, "failed": len(failed), "rate": rate})
        first = f"; {len(failed)} failed, the first: {failed[0]}" if failed else ""
        say(f"{clients} at a time: {rate:.3g} requests/s{first}")
        best = np.fmax.accumulate([step["rate"] for step in steps])
        if failed or (len(steps) > 2 and best[-1] < (1 + GROWTH) * best[-3]):
            break
        clients *= 2
    return pd.DataFrame(steps)


async def open_loop(endpoint: Endpoint, asks: Sequence[Ask], arrival_s: Floats, done: Callable[[Row], None]) -> None:
    """Send each request when it is due, in seconds from now, and pass its row to `done` when it is answered."""
    start = asyncio.get_running_loop().time()

    async def one(ask: Ask, at_s: float) -> None:
        await sleep_until(start + at_s)
        done(await answered(endpoint, ask, start + at_s, at_s))

    await together(*(one(ask, float(at_s)) for ask, at_s in zip(asks, arrival_s, strict=True)))


def arrivals(pattern: traces.ArrivalPattern, n: int, rate: float, rng: np.random.Generator) -> Floats:
    """When n requests come at `rate` per second: recorded ones drawn at random, their times scaled; seconds, (n,).

    The record is scaled as a whole: what took an hour takes n / rate seconds, and its bursts last accordingly.
    """
    return pattern.sample(n, rng) / pattern.span_s * (n / checks.positive(rate, "rate"))


def spread(lengths: LengthDistribution, n: int, longest: int, rng: np.random.Generator) -> Ints:
    """n lengths of a distribution, cut at `longest`, in random order: its quantiles, so that no draw is unlucky."""
    levels = (np.arange(checks.count(n, "n")) + 0.5) / n
    at = np.searchsorted(np.cumsum(lengths.counts), levels * lengths.counts.sum())
    return rng.permutation(np.minimum(lengths.tokens[at], checks.count(longest, "longest")))
