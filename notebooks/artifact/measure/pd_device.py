"""P/D-Device beside DiSCo, the cloud alone and the device alone, measured on two live ends of a quiet machine.

The device is the model in this process, one thread. The cloud is the same model behind llama.cpp's own server, whose
prefill would be no faster: so it has read every prompt before it is asked, and its first token comes when that of a
public service would (an emulated last hop). Its tokens, and the device's prefill and tokens, are real. Prompts are
refined beforehand, and no time is charged for that. Four tables:

    profile    both ends at once: the device's time to first token by prompt length, each one's time between tokens;
               before the answers, for the plan, and among them, for what is simulated beside them
    loss       share of a prompt's self-information that is left out at each share of tokens kept
    requests   every prompt under every policy, policies interleaved
    tokens     the tokens of P/D-Device's answers, with their times
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from tqdm import tqdm

from artifact.analysis.scenario import cost_model, output_lengths
from artifact.data import model, traces
from artifact.measure.answers import Tables, decode_rate, device_profile, outcome, run_beside, seen, timed_answer
from artifact.measure.ends import CONTEXT, ends
from artifact.measure.network_delay import LastHop
from disco_core import checks
from disco_core.cost import Constraint
from disco_core.dispatch import DispatchPlan, plan_device_only, plan_server_constrained, plan_server_only
from disco_core.endpoints.base import Endpoint, Prefix, Prompt, Token, ahead, whole
from disco_core.errors import InputError, StreamError
from disco_core.latency import DeviceProfile
from disco_core.live.stream import stream
from disco_core.migration import MigrationRule, Rule
from disco_core.record import LATE
from disco_core.systems.pd_device.refine import keep, protected_spans, self_information
from disco_core.systems.pd_device.take_over import TakeOver, plan_together

Tokens = AsyncGenerator[Token, None]
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)  # rho: of which the loss is told
OPENING, QUESTION = "People sent these requests to a help desk.", " Which of them would you answer first, and why?"
SPARE = 0.25  # the device's reading may take so much longer than expected
RESUME_QUANTILE = 0.95  # of the cloud's TTFT, for when it has to be asked again


@dataclass(frozen=True)
class PDSettings:
    """How much is measured, and under what.

    service       whose public TTFT the emulated last hop has, and whose prices count
    prompts       prompts asked under every policy, of
    shortest      tokens as built, to
    longest       tokens, in equal ratios
    max_tokens    of an answer
    tpot_limit_s  s, the most seconds a token; a reader of DiSCo's answers takes 1 / s tokens per second
    rho           share of the prompt that the device reads where it is refined
    """

    service: str = "gpt-4o-mini"
    prompts: int = 8
    shortest: int = 80
    longest: int = 280
    max_tokens: int = 64
    tpot_limit_s: float = 0.09
    rho: float = 0.8
    seed: int = 0

    name: ClassVar[str] = "pd"
    tables: ClassVar[dict[str, list[str]]] = {
        "profile": ["among", "end", "prompt_tokens", "device_s", "gap_s"],
        "loss": ["prompt", "rho", "loss"],
        "requests": [
            *("policy", "request", "prompt_tokens", "tokens", "ttft_s", "tpot_max_s", "cloud_s", "held_s"),
            *("migrated_at", "recalls", "server_decode", "device_prefill"),
        ],
        "tokens": ["policy", "request", "token", "source", "generated_s", "released_s"],
    }

    def __post_init__(self) -> None:
        traces.service(self.service)  # raises, naming those there are
        for name in ("prompts", "shortest", "longest", "max_tokens"):
            checks.count(getattr(self, name), name)
        checks.positive(self.tpot_limit_s, "tpot_limit_s")
        checks.number(self.rho, "rho", 0.0, 1.0, above=True)
        whole(self.seed, "seed")
        most = CONTEXT - self.max_tokens - 128  # the last request of a prompt may go beyond what was wanted
        if not 64 <= self.shortest < self.longest <= most:
            raise InputError(f"shortest and longest must be from 64 to {most}, got {self.shortest}, {self.longest}")

    def quick(self) -> "PDSettings":
        """The same in small."""
        return replace(self, prompts=min(2, self.prompts), longest=min(150, self.longest), max_tokens=24)

    def measure(self) -> Tables:
        """Every table, by name. An EndpointError where an end cannot be had; nothing is left running."""
        with ends(reuses=True) as (server, device):
            return run_beside(_Session(self, server, device).run())


def long_prompts(n: int, shortest: int, longest: int) -> list[list[tuple[str, bool]]]:
    """Prompts of about so many tokens, in equal ratios: many requests, one question, in pieces of (text, stays)."""
    words, (head, tail) = traces.table("prompts").prompt.tolist(), model.TEMPLATE.split("{prompt}")
    found = []
    for k, wanted in enumerate(np.geomspace(shortest, longest, n)):
        body, left = "", wanted - model.count_tokens(head + OPENING + QUESTION + tail)
        for i, request in enumerate([*words[7 * k :], *words], start=1):
            body += f" {i}. {request}"
            if model.count_tokens(body) >= left:
                break
        found.append([(head + OPENING, True), (body, False), (QUESTION + tail, True)])
    return found


class Held:
    """An endpoint, and for how many seconds its work has held it: what a slot of a cloud is busy for."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.held_s = endpoint, 0.0
        self._inner: WeakKeyDictionary[Tokens, Tokens] = WeakKeyDictionary()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.endpoint, name)

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt, as the endpoint counts them."""
        return self.endpoint.count(prompt)

    def ahead(self, tokens: Tokens) -> int:
        """What the endpoint says of a piece of work."""
        return ahead(self.endpoint, self._inner[tokens])

    def generate(self, prefix: Prefix) -> Tokens:
        """The endpoint's tokens."""
        inner = self.endpoint.generate(prefix)
        tokens = self._timed(inner)
        self._inner[tokens] = inner
        return tokens

    async def _timed(self, inner: Tokens) -> Tokens:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with aclosing(inner):
                async for token in inner:
                    yield token
        finally:
            self.held_s += loop.time() - began


class _Session:
    """One measuring session on two ends that reuse what they have read."""

    def __init__(self, settings: PDSettings, server: Endpoint, device: Endpoint) -> None:
        self.settings, self.server, self.device = settings, server, device
        self.service = traces.service(settings.service)
        self.pieces = long_prompts(settings.prompts, settings.shortest, settings.longest)
        self.built = ["".join(text for text, _ in pieces) for pieces in self.pieces]
        self.among = list[dict[str, Any]]()

    async def run(self) -> Tables:
        s, tables = self.settings, Tables()
        with tqdm(total=len(self.built) * 8 + 1, desc="P/D-Device, live", unit="answer", disable=None) as self.bar:
            try:
                await self._both(0)  # warms them up
                profile = pd.DataFrame([row for k in range(len(self.built)) for row in await self._both(k)])
                device = device_profile(profile.dropna(subset=["device_s"]), profile)
                tables["loss"], refined = self._refined()
                answers = [answer async for answer in self._policies(device, profile, refined)]
            finally:
                await self.server.aclose()  # type: ignore[attr-defined]
        among = pd.DataFrame(self.among)
        tables["profile"] = pd.concat([profile.assign(among=False), among.assign(among=True)])[s.tables["profile"]]
        tables["requests"] = pd.DataFrame([row for row, _ in answers])
        tables["tokens"] = pd.DataFrame([token for _, kept in answers for token in kept], columns=s.tables["tokens"])
        return tables

    async def _forget(self) -> dict[str, Any]:
        """Nothing of a prompt is left at the device: what it reads next begins otherwise. How long "Hi" took it."""
        answer = await timed_answer(self.device, "Hi", 1)
        first_s = answer[0][1] if answer else None
        return {"end": "device", "prompt_tokens": self.device.count("Hi"), "device_s": first_s}

    async def _both(self, k: int) -> list[dict[str, Any]]:
        """Both ends at once, as they will be. A prompt of next to nothing says where the device's line begins."""
        built, shortest = self.built[k], await self._forget()
        await timed_answer(self.server, built, 1)
        both = (timed_answer(self.server, built, 48), timed_answer(self.device, built, 16))
        server, device = ([at for _, at in answer] for answer in await asyncio.gather(*both))
        self.bar.update()
        longer = {"end": "device", "prompt_tokens": self.device.count(built), "device_s": device[0]}
        ends = (self.server, server), (self.device, device)
        return [shortest, longer, *({"end": end.name, "gap_s": gap} for end, times in ends for gap in np.diff(times))]

    def _refined(self) -> tuple[pd.DataFrame, list[list[int]]]:
        """The loss at each share, and every prompt refined, by scores that the cloud would have from its prefill."""
        losses, refined = [], []
        with closing(model.load(n_ctx=CONTEXT, n_threads=2, n_threads_batch=2)) as llama:
            for k, pieces in enumerate(self.pieces):
                ids, stays = protected_spans(pieces, llama)
                scores = self_information(llama, ids.tolist())
                known = np.where(np.isfinite(scores), scores, 0.0)
                for rho in SHARES:
                    loss = 1 - known[keep(scores, rho, stays)].sum() / known.sum()
                    losses.append({"prompt": k, "rho": rho, "loss": loss})
                refined.append(ids[keep(scores, self.settings.rho, stays)].tolist())
        return pd.DataFrame(losses), refined

    async def _policies(
        self, device: DeviceProfile, profile: pd.DataFrame, refined: list[list[int]]
    ) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Every prompt under every policy, in an order that turns with the prompt."""
        s, hop = self.settings, self.service.ttft
        lengths = [self.device.count(built) for built in self.built]
        prices, reader = cost_model(self.service, Constraint.SERVER), 1 / s.tpot_limit_s
        disco = MigrationRule(prices, output_lengths(s.max_tokens), hop, device, reader)
        resume_s = float(hop.quantile(RESUME_QUANTILE))
        take_over = TakeOver(device, 1 / decode_rate("server", profile), s.tpot_limit_s, resume_s, spare=SPARE)
        for k, built in enumerate(self.built):
            policies: dict[str, tuple[DispatchPlan, Rule | None]] = {
                "cloud only": (plan_server_only(), None),
                "device only": (plan_device_only(), None),
                "DiSCo": (plan_server_constrained(lengths, 1.0), disco),  # both ends at once, as P/D-Device does
                "P/D-Device": (plan_together(), take_over),
                "P/D-Device, refined": (
                    plan_together(refined=True),
                    replace(take_over, refine=partial(_as_refined, refined[k])),
                ),
            }
            for policy in np.roll(list(policies), k):
                row = {"policy": str(policy), "request": k, "prompt_tokens": lengths[k]}
                beside = policy == "device only"  # the one whose first token waits for its reading
                self.among += await self._both(k) if beside else []
                yield await self._request(row, built, *policies[policy], LastHop(self.server, hop, s.seed, k))
                self.among += await self._both(k) if beside else []
                self.bar.update()

    async def _request(
        self, row: dict[str, Any], built: str, plan: DispatchPlan, rule: Rule | None, cloud: LastHop
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        s, held = self.settings, Held(cloud)
        await self._forget()
        await timed_answer(self.server, built, 1)  # it has read the prompt before
        paced = rule is not None and rule.paces
        self.device.reuses = paced  # type: ignore[attr-defined]  # DiSCo's device begins anew
        rng = np.random.default_rng([s.seed, row["request"]])
        run = stream(
            built,
            plan=plan,
            server=held,
            device=self.device,
            rule=rule,
            max_tokens=s.max_tokens,
            rng=rng,
            reading_rate=1 / s.tpot_limit_s,
            wait=paced,  # only a pace that follows the device needs the time to do so
        )
        async with aclosing(run):
            with suppress(StreamError):  # it stands in the record
                async for _ in run:
                    pass
        record = run.record
        gaps = np.diff([token.released_s for token in record.tokens])
        row |= {"cloud_s": held.held_s, "held_s": cloud.held_s(), "tpot_max_s": gaps.max() if gaps.size else None}
        row |= {"recalls": sum(one.reason == LATE for one in record.handovers)} | outcome(record)
        tokens = [row | seen(token) for token in record.tokens] if paced else []
        return row, [{name: token[name] for name in s.tables["tokens"]} for token in tokens]


def _as_refined(ids: list[int], prompt: Prompt) -> Prompt:
    return ids
