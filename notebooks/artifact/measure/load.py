"""TTFT of a server on this machine at several loads: recorded arrivals at shares of the rate at which it saturates.

The server is llama.cpp's in a process of its own (continuous batching, four slots, one thread) with the device model;
nothing else runs. Prompts have Alpaca's lengths, answers are cut short. Two tables:

    saturation   the steps of the closed loop (`artifact.measure.record`): clients, requests, failed, rate
    requests     load, rate (requests per second), stretch, request, arrival_s, prompt_tokens, output_tokens, ttft_s
                 (from when it was due), done_s, failure

A load is measured in stretches, each of which begins with an idle server.
"""

import asyncio
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from artifact.data import model, traces
from artifact.measure import record
from artifact.measure.answers import run_in_thread
from artifact.measure.pieces import Run, Tables
from artifact.measure.texts import Texts
from disco_core import checks
from disco_core.endpoints.base import non_negative_int
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.local_server import LocalServer
from disco_core.errors import InputError

CONTEXT = 1024  # tokens of prompt and answer
DEADLINE_S = 120.0  # a request may wait long behind a burst
TABLES = ("prompts", "prompt_tokens", "arrivals", "arrivals_as_parsed")


def measure(run: Run) -> Tables:
    """Both tables; the notebook `measure_load` describes the settings.

    InputError for invalid settings, EndpointError if the server does not start; nothing is left running.
    """
    s = run.settings
    for name in ("requests", "stretches", "max_tokens", "fewest"):
        checks.count(getattr(s, name), name)
    for load in s.loads:
        checks.fraction(load, "load")
    if not s.loads or min(s.loads) <= 0:
        raise InputError(f"loads must be shares of the saturation rate above 0, got {s.loads}")
    checks.positive(s.seconds, "seconds")
    non_negative_int(s.seed, "seed")
    traces.pattern(s.arrivals)  # raises for an unknown one
    with LocalServer(model.smollm2_path(), n_ctx=CONTEXT) as local:
        server = LlamaServerEndpoint(local.url, name="server", deadline_s=DEADLINE_S)
        return run_in_thread(_Session(run, server).run())


def counts(load: float, rate: float, requests: int, seconds: float) -> int:
    """Requests at a load: so many, or as many as come in so many seconds, whichever is more."""
    return max(requests, round(load * rate * seconds))


class _Session:
    """One measuring session on one server."""

    def __init__(self, run: Run, server: LlamaServerEndpoint) -> None:
        self.taken, self.settings, self.server = run, run.settings, server
        self.lengths, self.pattern = traces.lengths("alpaca"), traces.pattern(run.settings.arrivals)

    async def run(self) -> Tables:
        s, rows = self.settings, list[dict[str, Any]]()
        self.taken.expect(1 + len(s.loads) * s.stretches)
        lag = asyncio.create_task(self.taken.monitor.watch())
        try:
            await self._saturation(2)  # warm-up
            steps = pd.DataFrame(await self.taken.piece("saturation", partial(self._saturation, s.fewest)))
            rate = float(steps["rate"].max())
            for load in s.loads:
                for stretch in range(s.stretches):
                    take = partial(self._stretch, load, stretch, rate)
                    key = f"load {load:g}, stretch {stretch} at {rate:.6g} requests per second"
                    rows += await self.taken.piece(key, take)
        finally:
            lag.cancel()
            await self.server.aclose()
        return {"saturation": steps, "requests": pd.DataFrame(rows)}

    async def _saturation(self, fewest: int) -> list[dict[str, Any]]:
        s, rng = self.settings, np.random.default_rng([self.settings.seed, 0])
        texts = Texts(self.server, rng, model.build)

        async def asks(n: int) -> list[record.Ask]:
            return await texts.asks(record.spread(self.lengths, n, CONTEXT // 2, rng), [s.max_tokens] * n)

        steps: list[dict[str, Any]] = (await record.saturation(self.server, asks, fewest=fewest)).to_dict("records")
        return steps

    async def _stretch(self, load: float, stretch: int, rate: float) -> list[dict[str, Any]]:
        """The requests of one stretch, in order of arrival; what has come is not seen before all are answered."""
        s, rows = self.settings, list[dict[str, Any]]()
        rng = np.random.default_rng([s.seed, 1 + s.loads.index(load), stretch])
        n = -(-counts(load, rate, s.requests, s.seconds) // s.stretches)
        lengths = record.spread(self.lengths, n, CONTEXT // 2, rng)
        asks = await Texts(self.server, rng, model.build).asks(lengths, [s.max_tokens] * n)
        await record.open_loop(self.server, asks, record.arrivals(self.pattern, n, load * rate, rng), rows.append)
        rows = sorted(rows, key=lambda row: row["arrival_s"])
        keys = {"load": load, "rate": load * rate, "stretch": stretch}
        return [keys | {"request": k} | row for k, row in enumerate(rows)]
