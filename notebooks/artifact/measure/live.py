"""Answers from two live ends, measured: every policy on the same prompts, on one machine, in one run.

The server is llama.cpp's own in a process of its own (continuous batching, four slots, one thread), kept busy by
Poisson clients; the device is the same model in this process, one thread. Five tables come out:

    pairs      both ends asked at once, both timed to their first token: what plans are made from, and replayed
    rates      time between tokens of each end alone
    requests   every prompt under every policy, policies interleaved so that drift hits all alike
    tokens     the tokens of those answers that moved, with their times
    seams      hand-overs on a quiet machine, beside direct calls with the same prefix
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from tqdm import tqdm

from artifact.analysis.scenario import behind_last_hop, cost_model, output_lengths, plans
from artifact.data import traces
from artifact.measure.answers import Tables, decode_rate, device_profile, outcome, run_beside, seen, timed_answer
from artifact.measure.ends import CONTEXT, ends, is_server, prompts
from artifact.measure.network_delay import LastHop
from disco_core import checks
from disco_core.cost import Constraint, End
from disco_core.delivery import READING_RATE
from disco_core.dispatch import DispatchPlan, plan_device_only, plan_server_only
from disco_core.endpoints.base import Endpoint, Token, whole
from disco_core.errors import InputError, StreamError
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.live.stream import stream
from disco_core.migration import MigrationRule
from disco_core.record import Record

PACES = (READING_RATE, 10.0, 20.0)  # the faster the reader, the later the hand-over: seams at several places
BACKGROUND_TOKENS = (8, 48)  # an answer to a background request has from, up to
RATE_TRIALS, RATE_TOKENS = 6, 24  # answers, and tokens of each, that an end's decode rate is taken from


@dataclass(frozen=True)
class Settings:
    """How much is measured, and under what.

    server       "local", or "openai:<model>": without background load, without an emulated last hop, without seams
    service      whose public TTFT the emulated last hop has, and whose prices count
    budget       b
    calibration  pairs that plans are made from, and
    pairs        those that are replayed, mixed in time
    prompts      prompts asked under every policy, spread over all lengths: plans are made for all of them
    longest      tokens of the longest prompt, as built: the server's own prefill is to be a small part of its TTFT
    max_tokens   of an answer
    load         share of the server's decoding, as measured alone, that background requests take
    seams        prompts that are handed over on a quiet machine, in both directions and at several paces
    """

    server: str = "local"
    service: str = "gpt-4o-mini"
    budget: float = 0.5
    calibration: int = 60
    pairs: int = 400
    prompts: int = 60
    longest: int = 48
    max_tokens: int = 20
    load: float = 0.15
    seams: int = 12
    seed: int = 0

    name: ClassVar[str] = "live"
    tables: ClassVar[dict[str, list[str]]] = {  # what each is read for
        "rates": ["end", "gap_s"],
        "pairs": ["prompt_tokens", "server_s", "device_s", "calibration"],
        "requests": ["setting", "policy", "request", "prompt", "ttft_s", "winner", "migrated_at", "held_s"],
        "tokens": [
            "setting",
            "policy",
            "request",
            "prompt",
            "token",
            "source",
            "id",
            "text",
            "generated_s",
            "released_s",
        ],
        "seams": [
            "prompt",
            "reading_rate",
            "source",
            "migrated_at",
            "tokens",
            "exact",
            "same_as_unmoved",
            "delay_num",
        ],
    }

    def __post_init__(self) -> None:
        is_server(self.server)
        traces.service(self.service)  # raises, naming those there are
        for name in ("calibration", "pairs", "prompts", "longest", "max_tokens", "seams"):
            checks.count(getattr(self, name), name)
        checks.fraction(self.budget, "budget")
        checks.fraction(self.load, "load")
        whole(self.seed, "seed")
        asked = prompts(self.longest)
        for name, wanted in (("prompts", self.prompts), ("seams", self.seams), ("rate trials", RATE_TRIALS)):
            if wanted > len(asked):
                raise InputError(
                    f"{wanted} {name} need as many prompts, but {len(asked)} have up to longest={self.longest} tokens"
                )
        needed = int(asked["tokens"].max()) + 2 * self.max_tokens  # a seam's answer is twice as long
        if needed > CONTEXT:
            raise InputError(f"longest + 2 max_tokens must be at most {CONTEXT}, each end's context, got {needed}")

    def quick(self) -> "Settings":
        """The same in small."""
        few = {"calibration": 12, "pairs": 12, "prompts": 3, "max_tokens": 12, "seams": 3}
        return replace(self, **{name: min(n, getattr(self, name)) for name, n in few.items()})

    def measure(self) -> Tables:
        """Every table, by name. An EndpointError where an end cannot be had; nothing is left running."""
        with ends(self.server) as (server, device):
            return run_beside(_Session(self, server, device).run())


def spread(lengths: Sequence[int], n: int) -> list[int]:
    """Which n prompts have lengths like all: at equal steps from the shortest to the longest, in their own order."""
    steps = np.linspace(0, len(lengths) - 1, n).round().astype(int)
    return [int(k) for k in np.sort(np.argsort(lengths, kind="stable")[steps])]


class _Session:
    """One measuring session on two ends."""

    def __init__(self, settings: Settings, server: Endpoint, device: Endpoint) -> None:
        self.settings, self.server, self.device = settings, server, device
        table = prompts(settings.longest)
        self.ids, self.built = table["id"].tolist(), table["built"].tolist()
        self.service = traces.service(settings.service)
        self.local = settings.server == "local"
        self.lag_s = 0.0

    async def run(self) -> Tables:
        s, tables = self.settings, Tables()
        policies = 6 * s.prompts * (1 + self.local)
        total = 2 * RATE_TRIALS + s.calibration + s.pairs + policies + 2 * s.seams * self.local
        lag = asyncio.create_task(self._watch())
        try:
            with tqdm(total=total, desc="live ends", unit="answer", disable=None) as self.bar:
                tables["rates"] = pd.DataFrame([row async for row in self._rates()])
                async with self._load(decode_rate("server", tables["rates"])):
                    pairs = pd.DataFrame([await self._pair(i) for i in range(s.calibration + s.pairs)])
                    # spread over all of them, so that drift is in both
                    mixed = np.random.default_rng([s.seed, 2]).permutation(len(pairs))
                    tables["pairs"] = pairs.assign(calibration=mixed < s.calibration)
                    known = pairs[mixed < s.calibration]
                    device, own_s = device_profile(known, tables["rates"]), known["server_s"]
                    answers = [answer async for answer in self._policies(own_s, device)]
                quiet = self._seams(TTFTDistribution(own_s), device)
                seams = [seam async for seam in quiet]
        finally:
            lag.cancel()
            if hasattr(self.server, "aclose"):
                await self.server.aclose()
        tables["requests"] = pd.DataFrame([row for row, _ in answers])
        tokens = [token for _, moved in [*answers, *seams] for token in moved]
        tables["tokens"] = pd.DataFrame(tokens, columns=s.tables["tokens"])
        tables["seams"] = pd.DataFrame([row for row, _ in seams], columns=None if seams else s.tables["seams"])
        return tables

    async def _rates(self) -> AsyncIterator[dict[str, Any]]:
        """Gaps between tokens of each end alone; the first answer of each warms it up and is not kept."""
        for k in range(RATE_TRIALS):
            for end in (self.server, self.device):
                times = [at for _, at in await timed_answer(end, self.built[k], RATE_TOKENS)]
                self.bar.update()
                for gap in np.diff(times) if k else ():
                    yield {"end": end.name, "gap_s": gap}

    async def _pair(self, i: int) -> dict[str, Any]:
        """Both ends asked at once for the first token; the load comes when it comes."""
        k = i % len(self.built)
        both = (timed_answer(end, self.built[k], 1) for end in (self.server, self.device))
        (server_s, device_s) = (answer[0][1] for answer in await asyncio.gather(*both))
        self.bar.update()
        length = self.device.count(self.built[k])
        return {"prompt": self.ids[k], "prompt_tokens": length, "server_s": server_s, "device_s": device_s}

    async def _policies(
        self, own_s: "pd.Series[float]", device: DeviceProfile
    ) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Every prompt under every policy, in an order that turns with the prompt."""
        s, hop = self.settings, self.service.ttft
        lengths = [self.device.count(built) for built in self.built]
        settings = {"raw": TTFTDistribution(own_s)}
        if self.local:
            settings["last hop"] = behind_last_hop(hop, own_s)
        for setting, ttft in settings.items():
            policies = plans(lengths, ttft, s.budget)
            rules = {constraint: self._rule(constraint, ttft, device) for constraint in Constraint}
            for request, k in enumerate(spread(lengths, s.prompts)):
                server = LastHop(self.server, hop, s.seed, request) if setting == "last hop" else self.server
                for policy in np.roll(list(policies), request):
                    plan, moves = policies[policy]
                    row = {"setting": setting, "policy": str(policy), "request": request, "prompt": self.ids[k]}
                    row["held_s"] = server.held_s() if isinstance(server, LastHop) else 0.0
                    yield await self._request(row, self.built[k], plan, moves and rules[moves], server)
                    self.bar.update()

    def _rule(self, constraint: Constraint, ttft: TTFTDistribution, device: DeviceProfile) -> MigrationRule:
        return MigrationRule(
            cost_model(self.service, constraint), output_lengths(self.settings.max_tokens), ttft, device
        )

    async def _request(
        self, row: dict[str, Any], built: str, plan: DispatchPlan, rule: MigrationRule | None, server: Endpoint
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        seeds, self.lag_s = [self.settings.seed, row["request"]], 0.0
        record = await self._record(built, plan, rule, server, self.settings.max_tokens, seeds)
        row |= {"prompt_tokens": self.device.count(built), "loop_lag_s": self.lag_s}
        delays = plan.draw(np.array([row["prompt_tokens"]]), np.random.default_rng(seeds))[:, 0]
        row |= {f"{end.name.lower()}_delay_s": delays[end] for end in End}
        moved = [row | seen(token) for token in record.tokens] if record.migrated_at else []
        return row | outcome(record), moved

    async def _record(
        self, built: str, plan: DispatchPlan, rule: MigrationRule | None, server: Endpoint, n: int, seeds: list[int]
    ) -> Record:
        rng = np.random.default_rng(seeds)
        run = stream(
            built, plan=plan, server=server, device=self.device, rule=rule, max_tokens=n, rng=rng, wait=False
        )
        async with aclosing(run):
            with suppress(StreamError):  # it stands in the record
                async for _ in run:
                    pass
        return run.record

    async def _seams(
        self, ttft: TTFTDistribution, device: DeviceProfile
    ) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Hand-overs with nothing else running: beside the target asked directly, and the source left alone."""
        n = 2 * self.settings.max_tokens
        for k in range(self.settings.seams if self.local else 0):
            for constraint, plan in (
                (Constraint.DEVICE, plan_device_only()),
                (Constraint.SERVER, plan_server_only()),
            ):
                rule = replace(self._rule(constraint, ttft, device), reading_rate=PACES[k % len(PACES)])
                rule = replace(rule, output_tokens=output_lengths(n))
                record = await self._record(self.built[k], plan, rule, self.server, n, [k])
                self.bar.update()
                if record.migrated_at:
                    row = {"setting": "quiet", "policy": f"from {constraint.end.name.lower()}", "request": k}
                    row |= {"prompt": self.ids[k], "prompt_tokens": self.device.count(self.built[k])}
                    moved = [row | seen(token) for token in record.tokens]
                    row |= {"reading_rate": rule.reading_rate} | outcome(record)
                    yield row | await self._seam(self.built[k], record, n), moved

    async def _seam(self, built: str, record: Record, n: int) -> dict[str, Any]:
        ends, at, source = (self.server, self.device), record.migrated_at, record.handovers[0].source
        tokens = [Token(token.index, token.text, token.id) for token in record.tokens]
        direct = await timed_answer(ends[1 - source], built, n, tokens[:at])
        alone = [token.id for token, _ in await timed_answer(ends[source], built, n)]
        moved = [token.id for token in tokens]
        parted = next((i for i in range(at, len(moved)) if moved[i : i + 1] != alone[i : i + 1]), len(moved))
        return {
            "source": ends[source].name,
            "exact": moved[at:] == [token.id for token, _ in direct],
            "same_as_unmoved": parted - at,
        }

    @asynccontextmanager
    async def _load(self, decode_rate: float) -> AsyncIterator[None]:
        """Poisson clients at the local server while the block runs; none at a commercial one."""
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

    async def _watch(self) -> None:
        """How late the event loop is: what a busy process would add to every time."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.01
            await asyncio.sleep(0.01)
            self.lag_s = max(self.lag_s, loop.time() - due)
