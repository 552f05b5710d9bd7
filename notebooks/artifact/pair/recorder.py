"""Record a server under load: recorded arrivals at shares of the rate at which it saturates, a csv for each load.

The server is llama.cpp's, used natively, or any with OpenAI's API; it is asked which. What is sent has the lengths of
a dataset, cut to what the server's context takes, and words of the artifact's prompts. The csv files have the columns
that `artifact.pair.readers` reads, with an empty ttft_s where a request failed.
"""

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pandas as pd
from tqdm import tqdm

from artifact.data import model, traces
from artifact.errors import ArtifactError
from artifact.files import BUILD, relative_path, write_atomic
from artifact.measure import record
from artifact.measure.texts import Texts
from artifact.pair import readers
from disco_core import checks
from disco_core.endpoints.base import Endpoint, non_negative_int
from disco_core.endpoints.llama_server import LlamaServerEndpoint
from disco_core.endpoints.openai import OpenAIEndpoint
from disco_core.errors import EndpointError, InputError

RECORDS = BUILD / "records"
CONTEXT = 4096  # tokens, where the server does not say
DEADLINE_S = 300.0  # without a byte, after which a request has failed: in an overload it waits long
ASK_S = 10.0  # seconds that a server may take to name its models
STREAMED, UNSTREAMED = 4, 0.005  # so many tokens that come in less than this share of the answer's time came at once
ALIASES = {"conversation": "conv", "r-1": "r1"}
LIKE = {"mooncake-conv": "azure-conv", "servegen-r1": "alpaca"}  # lengths of patterns that have none of their own


@dataclass(frozen=True)
class Plan:
    """What is recorded.

    arrivals   name of the pattern; `lengths`: dataset of prompt and answer lengths
    loads      shares of the saturation rate, above 0
    requests   of each load, at most; fewer where they would take more than `minutes` to come
    longest    tokens of an answer, at most
    context    tokens of prompt and answer; None: as the server says, or else 4,096
    fewest     requests of each step of the closed loop, at least
    out        a folder, or a csv file, to whose name the load is added if there are several
    """

    arrivals: str
    loads: tuple[float, ...]
    lengths: str | None = None
    requests: int = 200
    minutes: float = 5.0
    longest: int = 128
    context: int | None = None
    fewest: int = record.FEWEST
    seed: int = 0
    out: Path = RECORDS

    def __post_init__(self) -> None:
        object.__setattr__(self, "arrivals", _pattern(self.arrivals))
        lengths = self.lengths or LIKE.get(self.arrivals, self.arrivals)
        both = [name for name in traces.datasets("prompt") if name in traces.datasets("output")]
        if lengths not in both:
            raise InputError(f"no lengths of {lengths!r}; there are {', '.join(both)}")
        object.__setattr__(self, "lengths", lengths)
        for load in self.loads:
            checks.positive(load, "load")
        if not self.loads or len(set(self.loads)) < len(self.loads):
            raise InputError(f"load must be one or several different numbers above 0, got {self.loads}")
        for name in ("requests", "longest", "fewest"):
            checks.count(getattr(self, name), name)
        if self.requests < readers.FEWEST:
            raise InputError(f"requests must be at least {readers.FEWEST}, got {self.requests}")
        if self.context is not None:
            checks.count(self.context, "context")
        checks.positive(self.minutes, "minutes")
        non_negative_int(self.seed, "seed")

    def path(self, load: float) -> Path:
        """Where the record of a load goes."""
        if self.out.suffix != ".csv":
            return self.out / f"{self.arrivals}-load-{load:g}.csv"
        return self.out if len(self.loads) == 1 else self.out.with_name(f"{self.out.stem}-load-{load:g}.csv")


def _pattern(name: str) -> str:
    """The name of a recorded pattern, also if it is written out."""
    known, short = traces.patterns(), name.strip().lower().replace("_", "-").replace(" ", "-")
    for written, usual in ALIASES.items():
        short = short.replace(written, usual)
    if short not in known:
        written_out = [one.replace("conv", "conversation") for one in known]
        raise InputError(f"no arrivals {name!r}; there are {', '.join(written_out)}")
    return short


def server(url: str, model_name: str | None) -> Endpoint:
    """The endpoint of a server: llama.cpp's natively, any other with OpenAI's API; it is asked.

    The key is OPENAI_API_KEY. EndpointError, in one line, if it is neither or the model is not there.
    """
    key, root = os.environ.get("OPENAI_API_KEY") or None, url.rstrip("/").removesuffix("/v1")
    try:
        return LlamaServerEndpoint(root, api_key=key, name="server", deadline_s=DEADLINE_S)
    except EndpointError:  # no llama.cpp server, or its router; what else is wrong shows below
        base = url if urlsplit(url).path.strip("/") else f"{root}/v1"
    name, context = _model(base, key, model_name)
    given: dict[str, Any] = {"count_tokens": model.count_tokens, "context": context, "name": "server"}
    return OpenAIEndpoint(name, base_url=base, api_key=key, deadline_s=DEADLINE_S, **given)


def _model(base: str, key: str | None, wanted: str | None) -> tuple[str, int | None]:
    """The name of the model to ask for, and its context as far as the server tells."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.get(f"{base.rstrip('/')}/models", headers=headers, timeout=ASK_S, follow_redirects=True)
        rows = {str(one["id"]): one for one in response.json()["data"]}
    except httpx.HTTPError as error:
        raise ArtifactError(f"{base} cannot be reached: {type(error).__name__}") from None
    except (ValueError, KeyError, TypeError):
        if response.status_code in (401, 403):
            raise ArtifactError(f"{base} wants a key: set OPENAI_API_KEY (status {response.status_code})") from None
        rows = {}
    if wanted is None and len(rows) != 1:
        raise ArtifactError(f"{base} serves {len(rows)} models; name one with --model: {', '.join([*rows][:12])}")
    if wanted is not None and rows and wanted not in rows:
        raise ArtifactError(f"{base} has no model {wanted!r}; it has {', '.join([*rows][:12])}")
    name = wanted or next(iter(rows))
    context = rows.get(name, {}).get("max_model_len")
    return name, context if isinstance(context, int) and context > 0 else None


class Recorder:
    """One session: what has come stands in `rows`, also after an interrupt, and is written by `write`."""

    def __init__(self, endpoint: Endpoint, plan: Plan) -> None:
        self.endpoint, self.plan = endpoint, plan
        self.rows: list[record.Row] = []
        self.load: float | None = None
        self.context = plan.context or endpoint.context or CONTEXT
        if endpoint.context is not None and self.context > endpoint.context:
            raise InputError(f"context must be at most the server's, {endpoint.context}, got {self.context}")
        if self.context < 64:
            raise InputError(f"context must be at least 64 tokens, got {self.context}")

    async def run(self) -> None:
        """Find the saturation rate, then record every load."""
        plan, rng = self.plan, np.random.default_rng(self.plan.seed)
        texts = await asyncio.to_thread(Texts, self.endpoint, rng)
        try:
            await self._try(texts)
            _say(f"looking for the saturation rate, with lengths of {plan.lengths}, cut to {self.context} tokens;")
            _say(f"1, 2, 4, ... clients at a time, at least {plan.fewest} requests each: a line when each has ended")
            steps = await record.saturation(
                self.endpoint, lambda n: self._asks(texts, n, rng), fewest=plan.fewest, say=_say
            )
            rate = float(steps["rate"].max())
            _say(f"it saturates at {rate:.3g} requests per second (more clients at a time do not add 5 %)")
            for load in plan.loads:
                await self._record(texts, load, rate, rng)
        finally:
            if hasattr(self.endpoint, "aclose"):
                await self.endpoint.aclose()

    async def _try(self, texts: Texts) -> None:
        """One request alone; ArtifactError, in one line, if it fails or is not streamed."""
        (ask,) = await texts.asks([texts.shortest], [16])
        row = await record.answered(self.endpoint, ask, asyncio.get_running_loop().time(), 0.0)
        if row["failure"]:
            raise ArtifactError(row["failure"])
        if row["output_tokens"] >= STREAMED and row["done_s"] - row["ttft_s"] < UNSTREAMED * row["done_s"]:
            raise ArtifactError(f"{self.endpoint.name} does not stream: {row['output_tokens']} tokens came at once")

    async def _asks(self, texts: Texts, n: int, rng: np.random.Generator) -> Sequence[record.Ask]:
        assert self.plan.lengths is not None
        answers = traces.lengths(self.plan.lengths, "output")
        most = record.spread(answers, n, min(self.plan.longest, self.context // 4), rng)
        # counted by another tokenizer than the server's, a prompt may have a third more tokens than it seems
        room = 0.75 * (self.context - most.max()) if isinstance(self.endpoint, OpenAIEndpoint) else None
        longest = int(self.context - most.max() if room is None else room)
        return await texts.asks(record.spread(traces.lengths(self.plan.lengths), n, longest, rng), most.tolist())

    async def _record(self, texts: Texts, load: float, rate: float, rng: np.random.Generator) -> None:
        n = min(self.plan.requests, int(60 * self.plan.minutes * load * rate))
        if n < readers.FEWEST:
            minutes = readers.FEWEST / (60 * load * rate)
            raise InputError(
                f"at load {load:g}, {load * rate:.3g} requests/s, {n} come in {self.plan.minutes:g} minutes; "
                f"at least {readers.FEWEST} are needed: give --minutes {np.ceil(10 * minutes) / 10:g}"
            )
        at_s = record.arrivals(traces.pattern(self.plan.arrivals), n, load * rate, rng)
        asks = await self._asks(texts, n, rng)
        self.load, self.rows = load, []
        with tqdm(total=n, desc=f"load {load:g}", unit="request", mininterval=1.0, ncols=80) as bar:

            def done(row: record.Row) -> None:
                self.rows.append(row)
                bar.update()

            await record.open_loop(self.endpoint, asks, at_s, done)
        self.write()

    def write(self) -> Path | None:
        """Write the rows of the current load, if there are any, and say what they hold."""
        if self.load is None or not self.rows:
            return None
        load, rows = self.load, pd.DataFrame(self.rows).sort_values("arrival_s")
        self.load = None
        path = self.plan.path(load)
        write_atomic(path, _csv(rows))
        ttft_s, failed = rows["ttft_s"].dropna().astype(float), rows["failure"] != ""
        p50, p99 = (np.quantile(ttft_s, q, method="inverted_cdf") if len(ttft_s) else np.nan for q in (0.5, 0.99))
        first = f", the first: {rows.loc[failed, 'failure'].iloc[0]}" if failed.any() else ""
        _say(
            f"load {load:g}: {len(ttft_s)} requests, TTFT {p50:.3g} s in the median, P99 {p99:.3g} s; "
            f"{failed.sum()} failed{first}; {relative_path(path)}"
        )
        return path


def _csv(rows: pd.DataFrame) -> str:
    table = rows[record.COLUMNS].astype({"output_tokens": "Int64", "ttft_s": float})
    return str(table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def _say(text: str) -> None:
    tqdm.write(re.sub(r"\s+", " ", text), file=sys.stderr)


def record_server(url: str, model_name: str | None, plan: Plan) -> int:
    """Record a server; 0, or 130 after an interrupt, which keeps what there is."""
    recorder = Recorder(server(url, model_name), plan)
    try:
        asyncio.run(recorder.run())
    except KeyboardInterrupt:
        path = recorder.write()
        _say(f"interrupted; {'what there is was written' if path else 'nothing was recorded at this load yet'}")
        return 130
    return 0
