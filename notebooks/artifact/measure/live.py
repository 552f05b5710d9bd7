"""Answers of two live endpoints, measured: every policy on the same prompts, on one machine, in one run.

The server is llama.cpp's in a separate process (continuous batching, four slots, one thread), with a load of Poisson
clients; the device is the same model in this process, one thread. Five tables:

    pairs      first-token times of both endpoints for the same request, for making plans and for the replay
    rates      time between tokens of each endpoint alone
    requests   every prompt under every policy, within seconds of each other, in rotating order
    tokens     the tokens of the migrated answers, with their times
    seams      hand-overs on an idle machine, compared with direct calls with the same prefix

Under random dispatch the answer is that of the chosen endpoint alone. Its rows are therefore those of `server only`
or `device only`, as its draws choose, and no further requests are sent.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from artifact.analysis.scenario import cost_model, output_lengths, plans, with_network_delay
from artifact.data import traces
from artifact.measure.answers import (
    decode_rate,
    device_profile,
    recorded,
    request_row,
    run_in_thread,
    timed_answer,
    together,
    token_row,
)
from artifact.measure.ends import CONTEXT, ends, is_server, prompts
from artifact.measure.network_delay import LastHop
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.cost import Constraint, End
from disco_core.delivery import READING_RATE
from disco_core.dispatch import DispatchPlan, plan_device_only, plan_server_only
from disco_core.endpoints.base import Endpoint, Token, non_negative_int
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.live.stream import stream
from disco_core.migration import MigrationRule
from disco_core.record import Record

PACES = (READING_RATE, 10.0, 20.0)  # the faster the reader, the later the hand-over: several hand-over points
BACKGROUND_TOKENS = (8, 48)  # of an answer to a background request: least, most
RATE_TRIALS, RATE_TOKENS = 6, 24  # answers, and tokens of each, for an endpoint's decode rate
ALONE = {End.SERVER: "server only", End.DEVICE: "device only"}
TOKENS = ["setting", "policy", "request", "prompt", "token", "source", "id", "text", "generated_s", "released_s"]
SEAMS = ["prompt", "reading_rate", "source", "migrated_at", "tokens", "exact", "same_as_unmoved", "delay_num"]
TABLES = ("prompts", "services", "ttft_quantiles", "ttft_quantiles_as_parsed", "output_tokens", "phones")


def measure(run: Run) -> Tables:
    """All tables; the notebook `measure_live` describes the settings.

    InputError for invalid settings, EndpointError if an endpoint is not available; nothing is left running.
    """
    _check(run.settings)
    with ends(run.settings.server) as (server, device):
        return run_in_thread(_Session(run, server, device).run())


def _check(s: Any) -> None:
    is_server(s.server)
    traces.service(s.service)  # raises for an unknown one
    for name in ("calibration", "pairs", "prompts", "raw_prompts", "longest", "max_tokens", "seams"):
        checks.count(getattr(s, name), name)
    checks.fraction(s.budget, "budget")
    checks.fraction(s.load, "load")
    non_negative_int(s.seed, "seed")
    asked = prompts(s.longest)
    counts = {"prompts": s.prompts, "raw_prompts": s.raw_prompts, "seams": s.seams, "rate trials": RATE_TRIALS}
    for name, wanted in counts.items():
        if wanted > len(asked):
            raise InputError(
                f"{wanted} {name} need as many prompts, but {len(asked)} have up to longest={s.longest} tokens"
            )
    needed = int(asked["tokens"].max()) + 2 * s.max_tokens  # those of `seams` are twice as long
    if needed > CONTEXT:
        raise InputError(f"longest + 2 max_tokens must be at most {CONTEXT}, each end's context, got {needed}")


def spread(lengths: Sequence[int], n: int) -> list[int]:
    """n prompts whose lengths represent all: at equal steps from the shortest to the longest, in the given order."""
    steps = np.linspace(0, len(lengths) - 1, n).round().astype(int)
    return [int(k) for k in np.sort(np.argsort(lengths, kind="stable")[steps])]


class _Session:
    """One measuring session on two endpoints."""

    def __init__(self, run: Run, server: Endpoint, device: Endpoint) -> None:
        self.taken, self.settings, self.server, self.device = run, run.settings, server, device
        table = prompts(run.settings.longest)
        self.ids, self.built = table["id"].tolist(), table["built"].tolist()
        self.service = traces.service(run.settings.service)
        self.local = run.settings.server == "local"

    async def run(self) -> Tables:
        s, piece = self.settings, self.taken.piece
        asked = {"raw": s.prompts if not self.local else s.raw_prompts} | (
            {"last hop": s.prompts} if self.local else {}
        )
        seams = 2 * s.seams * self.local
        self.taken.expect(RATE_TRIALS + s.calibration + s.pairs + sum(asked.values()) + seams)
        lag = asyncio.create_task(self.taken.monitor.watch())
        try:
            await self._rate(0)  # warm-up of both
            rates = [row for k in range(RATE_TRIALS) for row in await piece(f"rate {k}", partial(self._rate, k))]
            async with self._load(decode_rate("server", pd.DataFrame(rates))):
                both = range(s.calibration + s.pairs)
                pairs = pd.DataFrame([await piece(f"pair {i}", partial(self._pair, i)) for i in both])
                # drawn from all of them, so that a drift affects both halves
                mixed = np.random.default_rng([s.seed, 2]).permutation(len(pairs))
                known = pairs[mixed < s.calibration]
                device, own_s = device_profile(known, pd.DataFrame(rates)), known["server_s"]
                answers = [
                    row
                    for setting, n in asked.items()
                    async for row in self._policies(setting, n, TTFTDistribution(own_s), device)
                ]
            quiet = [row async for row in self._seams(TTFTDistribution(own_s), device)]
        finally:
            lag.cancel()
            if hasattr(self.server, "aclose"):
                await self.server.aclose()
        moved = [token for row in [*answers, *quiet] for token in row.pop("moved")]
        return {
            "rates": pd.DataFrame(rates),
            "pairs": pairs.assign(calibration=mixed < s.calibration),
            "requests": pd.DataFrame(answers),
            "tokens": pd.DataFrame(moved, columns=None if moved else TOKENS),
            "seams": pd.DataFrame(quiet, columns=None if quiet else SEAMS),
        }

    async def _rate(self, k: int) -> list[dict[str, Any]]:
        """Gaps between tokens of each endpoint alone."""
        rows = []
        for end in (self.server, self.device):
            times = [at for _, at in await timed_answer(end, self.built[k], RATE_TOKENS)]
            rows += [{"end": end.name, "gap_s": gap} for gap in np.diff(times)]
        return rows

    async def _pair(self, i: int) -> dict[str, Any]:
        """First-token times of both endpoints for one request, at whatever load there is."""
        k = i % len(self.built)
        both = (timed_answer(end, self.built[k], 1) for end in (self.server, self.device))
        (server_s, device_s) = (answer[0][1] for answer in await together(*both))
        length = self.device.count(self.built[k])
        return {"prompt": self.ids[k], "prompt_tokens": length, "server_s": server_s, "device_s": device_s}

    async def _policies(
        self, setting: str, n: int, own: TTFTDistribution, device: DeviceProfile
    ) -> AsyncIterator[dict[str, Any]]:
        """n prompts under every policy: a piece is one prompt under all policies, one after the other."""
        s, hop = self.settings, self.service.ttft
        lengths = [self.device.count(built) for built in self.built]
        ttft = own if setting == "raw" else with_network_delay(hop, own.values_s)
        policies = plans(lengths, ttft, s.budget)
        rules = {constraint: self._rule(constraint, ttft, device) for constraint in Constraint}
        made_for = hashlib.sha256(f"{own.values_s.tolist()} {device}".encode()).hexdigest()[
            :6
        ]  # since answers depend on the plan
        for request, k in enumerate(spread(lengths, n)):
            server = LastHop(self.server, hop, s.seed, request) if setting == "last hop" else self.server
            about = {"setting": setting, "request": request, "prompt": self.ids[k], "prompt_tokens": lengths[k]}
            about["held_s"] = server.held_s() if isinstance(server, LastHop) else 0.0
            asked = {name: (plan, moves and rules[moves]) for name, (plan, moves) in policies.items()}
            drawn = {
                name: plan.draw(np.array([lengths[k]]), self._rng(request))[:, 0] for name, (plan, _) in asked.items()
            }
            policy_answers = partial(self._answers, asked, self.built[k], server, request)
            rows = await self.taken.piece(f"{setting}, plan {made_for}, prompt {request}", policy_answers)
            for policy, delays in drawn.items():
                picked = ALONE[End(int(np.isinf(delays[0])))] if policy.startswith("Stoch") else policy
                row = about | {"policy": policy, "server_delay_s": delays[0], "device_delay_s": delays[1]}
                keys = {name: row[name] for name in ("setting", "policy", "request", "prompt")}
                yield row | rows[picked] | {"moved": [keys | token for token in rows[picked]["moved"]]}

    async def _answers(
        self,
        asked: dict[str, tuple[DispatchPlan, MigrationRule | None]],
        built: str,
        server: Endpoint,
        request: int,
    ) -> dict[str, Any]:
        """One prompt under every policy that is not random, in an order that rotates with the request."""
        rows = {}
        for policy in np.roll([name for name in asked if not name.startswith("Stoch")], request):
            record = await self._record(built, *asked[policy], server, self.settings.max_tokens, request)
            moved = [token_row(token) for token in record.tokens] if record.migrated_at else []
            rows[str(policy)] = request_row(record) | {"moved": moved}
        return rows

    def _rng(self, request: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, request])

    def _rule(self, constraint: Constraint, ttft: TTFTDistribution, device: DeviceProfile) -> MigrationRule:
        return MigrationRule(
            cost_model(self.service, constraint), output_lengths(self.settings.max_tokens), ttft, device
        )

    async def _record(
        self, built: str, plan: DispatchPlan, rule: MigrationRule | None, server: Endpoint, n: int, request: int
    ) -> Record:
        run = stream(
            built,
            plan=plan,
            server=server,
            device=self.device,
            rule=rule,
            max_tokens=n,
            rng=self._rng(request),
            wait=False,
        )
        return await recorded(run)

    async def _seams(self, ttft: TTFTDistribution, device: DeviceProfile) -> AsyncIterator[dict[str, Any]]:
        """Hand-overs on an idle machine, compared with direct calls of the target and of the source."""
        for k in range(self.settings.seams if self.local else 0):
            for constraint, plan in (
                (Constraint.DEVICE, plan_device_only()),
                (Constraint.SERVER, plan_server_only()),
            ):
                rule = replace(
                    self._rule(constraint, ttft, device),
                    reading_rate=PACES[k % len(PACES)],
                    output_tokens=output_lengths(2 * self.settings.max_tokens),
                )
                source = constraint.end.name.lower()
                row = await self.taken.piece(f"seam {k} from {source}", partial(self._seam, k, source, plan, rule))
                if row:
                    keys = {"setting": "quiet", "policy": f"from {source}", "request": k, "prompt": self.ids[k]}
                    yield keys | row | {"moved": [keys | token for token in row["moved"]]}

    async def _seam(self, k: int, source: str, plan: DispatchPlan, rule: MigrationRule) -> dict[str, Any]:
        """One hand-over; an empty dict if the answer did not migrate."""
        built, n = self.built[k], 2 * self.settings.max_tokens
        record = await self._record(built, plan, rule, self.server, n, k)
        if not (at := record.migrated_at):
            return {}
        begun, target = {"server": (self.server, self.device), "device": (self.device, self.server)}[source]
        tokens = [Token(token.index, token.text, token.id) for token in record.tokens]
        direct = await timed_answer(target, built, n, tokens[:at])
        alone = [token.id for token, _ in await timed_answer(begun, built, n)]
        moved = [token.id for token in tokens]
        parted = next((i for i in range(at, len(moved)) if moved[i : i + 1] != alone[i : i + 1]), len(moved))
        row = {"prompt_tokens": self.device.count(built), "reading_rate": rule.reading_rate} | request_row(record)
        row |= {"source": source, "exact": moved[at:] == [token.id for token, _ in direct]}
        return row | {"same_as_unmoved": parted - at, "moved": [token_row(token) for token in record.tokens]}

    @asynccontextmanager
    async def _load(self, decode_rate: float) -> AsyncIterator[None]:
        """Poisson clients of the local server while the block runs; none of an external one."""
        clients = set[asyncio.Task[Any]]()
        if self.local:
            rate = self.settings.load * decode_rate / np.mean(BACKGROUND_TOKENS)
            clients.add(asyncio.create_task(self._arrivals(float(rate), clients)))
        try:
            yield
        finally:
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _arrivals(self, rate: float, clients: set[asyncio.Task[Any]]) -> None:
        rng = np.random.default_rng([self.settings.seed, 1])
        while rate > 0:
            await asyncio.sleep(float(rng.exponential(1 / rate)))
            tokens = int(rng.integers(*BACKGROUND_TOKENS))
            client = asyncio.create_task(timed_answer(self.server, str(rng.choice(self.built)), tokens))
            clients.add(client)
            client.add_done_callback(clients.discard)
