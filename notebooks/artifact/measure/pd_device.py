"""P/D-Device beside DiSCo, the cloud alone and the device alone, measured on two live ends of a quiet machine.

The device is the model in this process, one thread. The cloud is the same model behind llama.cpp's own server, whose
prefill would be no faster: so it has read every prompt before it is asked, and its first token comes when that of a
public service would (an emulated last hop). Its tokens, and the device's prefill and tokens, are real. Prompts are
refined beforehand, and no time is charged for that. How long prompts are is told in seconds that the device alone
needs to read them, so that the comparison is the same on a faster machine. Four tables:

    profile    both ends at once: the device's time to first token by prompt length, each one's time between tokens;
               before the answers, for the plan, and among them, for what is simulated beside them
    loss       share of a prompt's self-information that is left out at each share of tokens kept
    requests   every prompt under every policy, within seconds of each other, in an order that turns
    tokens     the tokens of P/D-Device's answers, with their times
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

from artifact.analysis.scenario import cost_model, output_lengths
from artifact.data import model, traces
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
from artifact.measure.ends import ends
from artifact.measure.network_delay import LastHop
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.cost import Constraint
from disco_core.dispatch import DispatchPlan, plan_device_only, plan_server_constrained, plan_server_only
from disco_core.endpoints.base import Endpoint, Prefix, Prompt, Token, ahead, whole
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile
from disco_core.live.stream import stream
from disco_core.migration import MigrationRule, Rule
from disco_core.record import LATE
from disco_core.systems.pd_device.refine import keep, protected_spans, self_information
from disco_core.systems.pd_device.take_over import TakeOver, plan_together

Tokens = AsyncGenerator[Token, None]
Rows = list[dict[str, Any]]
CONTEXT = 4096  # tokens of prompt and answer that fit each endpoint
PACE_TOKENS = 256  # of the prompt by which the device's pace is found
LEAST_TOKENS = 64  # of a prompt, head and question included
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)  # rho: of which the loss is told
OPENING, QUESTION = "People sent these requests to a help desk.", " Which of them would you answer first, and why?"
SPARE = 0.25  # the device's reading may take so much longer than expected
RESUME_QUANTILE = 0.95  # of the cloud's TTFT, for when it has to be asked again
TABLES = ("prompts", "services", "ttft_quantiles", "ttft_quantiles_as_parsed", "output_tokens", "phones")
_TOKEN_COLUMNS = ["policy", "request", "token", "source", "generated_s", "released_s"]


def measure(run: Run) -> Tables:
    """Every table; the notebook `measure_pd_device` says what the settings mean.

    InputError for settings that cannot be, an EndpointError where an end cannot be had; nothing is left running.
    """
    _check(run.settings)
    with ends(reuses=True, context=CONTEXT) as (server, device):
        return run_in_thread(_Session(run, server, device).run())


def _check(s: Any) -> None:
    traces.service(s.service)  # raises, naming those there are
    for name in ("prompts", "max_tokens"):
        checks.count(getattr(s, name), name)
    for name in ("shortest_s", "longest_s", "tpot_limit_s"):
        checks.positive(getattr(s, name), name)
    checks.number(s.rho, "rho", 0.0, 1.0, above=True)
    whole(s.seed, "seed")
    if s.shortest_s >= s.longest_s:
        raise InputError(f"shortest_s must be below longest_s={s.longest_s}, got {s.shortest_s}")
    if s.max_tokens > CONTEXT // 2:
        raise InputError(
            f"max_tokens must be at most {CONTEXT // 2}, half of each endpoint's context, got {s.max_tokens}"
        )


def long_prompts(tokens: Sequence[float]) -> list[list[tuple[str, bool]]]:
    """Prompts of about so many tokens: many requests, one question, in pieces of (text, stays)."""
    words, (head, tail) = traces.table("prompts").prompt.tolist(), model.TEMPLATE.split("{prompt}")
    found = []
    for k, wanted in enumerate(tokens):
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

    def __init__(self, run: Run, server: Endpoint, device: Endpoint) -> None:
        self.taken, self.settings, self.server, self.device = run, run.settings, server, device
        self.service = traces.service(run.settings.service)

    async def run(self) -> Tables:
        n = range(self.settings.prompts)
        self.taken.expect(2 * len(n) + 2)
        lag = asyncio.create_task(self.taken.monitor.watch())
        try:
            self._ask(await self.taken.piece("pace", self._pace))
            asked = [f"{k}, {self.device.count(built)} tokens" for k, built in enumerate(self.built)]
            await self._both(0)  # warms them up
            profile = []
            for k in n:
                profile += await self.taken.piece(f"profile {asked[k]}", partial(self._both, k))
            refine = partial(asyncio.to_thread, self._refined)
            refined = await self.taken.piece(f"refined prompts {'; '.join(asked)}", refine, timed=False)
            policies = self._policies(pd.DataFrame(profile), refined["ids"])
            answers = []
            for k in n:
                answers.append(await self.taken.piece(f"prompt {asked[k]}", partial(self._answers, k, policies[k])))
        finally:
            lag.cancel()
            await self.server.aclose()  # type: ignore[attr-defined]
        among = [row | {"among": True} for one in answers for row in one["among"]]
        return {
            "profile": pd.DataFrame([row | {"among": False} for row in profile] + among),
            "loss": pd.DataFrame(refined["losses"]),
            "requests": pd.DataFrame([row for one in answers for row in one["requests"]]),
            "tokens": pd.DataFrame([row for one in answers for row in one["tokens"]], columns=_TOKEN_COLUMNS),
        }

    async def _pace(self) -> float:
        """Prompt tokens a second that the device reads, in the median of three readings."""
        (pieces,), times = long_prompts([PACE_TOKENS]), []
        built = "".join(text for text, _ in pieces)
        for _ in range(3):
            await self._forget()
            times.append((await timed_answer(self.device, built, 1))[0][1])
        return self.device.count(built) / float(np.median(times))

    def _ask(self, pace: float) -> None:
        """Choose the prompts: as long as takes the device so many seconds, in equal ratios."""
        s = self.settings
        most = CONTEXT - s.max_tokens - 128  # the last request of a prompt may go beyond what was wanted
        tokens = np.geomspace(s.shortest_s, s.longest_s, s.prompts) * pace
        self.pieces = long_prompts(np.clip(tokens, LEAST_TOKENS, most).tolist())
        self.built = ["".join(text for text, _ in pieces) for pieces in self.pieces]

    async def _forget(self) -> dict[str, Any]:
        """Nothing of a prompt is left at the device: what it reads next begins otherwise. How long "Hi" took it."""
        answer = await timed_answer(self.device, "Hi", 1)
        first_s = answer[0][1] if answer else None
        return {"end": "device", "prompt_tokens": self.device.count("Hi"), "device_s": first_s}

    async def _both(self, k: int) -> Rows:
        """Both ends at once, as they will be. A prompt of next to nothing says where the device's line begins."""
        built, shortest = self.built[k], await self._forget()
        await timed_answer(self.server, built, 1)
        both = (timed_answer(self.server, built, 48), timed_answer(self.device, built, 16))
        server, device = ([at for _, at in answer] for answer in await together(*both))
        longer = {"end": "device", "prompt_tokens": self.device.count(built), "device_s": device[0]}
        ends = (self.server, server), (self.device, device)
        return [shortest, longer, *({"end": end.name, "gap_s": gap} for end, times in ends for gap in np.diff(times))]

    def _refined(self) -> dict[str, Any]:
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
        return {"losses": losses, "ids": refined}

    def _policies(
        self, profile: pd.DataFrame, refined: list[list[int]]
    ) -> list[dict[str, tuple[DispatchPlan, Rule | None]]]:
        """Every policy, for each prompt."""
        s, hop = self.settings, self.service.ttft
        device: DeviceProfile = device_profile(profile.dropna(subset=["device_s"]), profile)
        lengths = [self.device.count(built) for built in self.built]
        prices, reader = cost_model(self.service, Constraint.SERVER), 1 / s.tpot_limit_s
        disco = MigrationRule(prices, output_lengths(s.max_tokens), hop, device, reader)
        resume_s = float(hop.quantile(RESUME_QUANTILE))
        take_over = TakeOver(device, 1 / decode_rate("server", profile), s.tpot_limit_s, resume_s, spare=SPARE)
        return [
            {
                "cloud only": (plan_server_only(), None),
                "device only": (plan_device_only(), None),
                "DiSCo": (plan_server_constrained(lengths, 1.0), disco),  # both ends at once, as P/D-Device does
                "P/D-Device": (plan_together(), take_over),
                "P/D-Device, refined": (
                    plan_together(refined=True),
                    replace(take_over, refine=partial(_as_refined, ids)),
                ),
            }
            for ids in refined
        ]

    async def _answers(self, k: int, policies: dict[str, tuple[DispatchPlan, Rule | None]]) -> dict[str, Rows]:
        """One prompt under every policy, in an order that turns with the prompt."""
        found: dict[str, Rows] = {"among": [], "requests": [], "tokens": []}
        for policy in np.roll(list(policies), k):
            beside = policy == "device only"  # the one whose first token waits for its reading
            found["among"] += await self._both(k) if beside else []
            row, tokens = await self._request(k, str(policy), *policies[policy])
            found["requests"].append(row)
            found["tokens"] += tokens
            found["among"] += await self._both(k) if beside else []
        return found

    async def _request(
        self, k: int, policy: str, plan: DispatchPlan, rule: Rule | None
    ) -> tuple[dict[str, Any], Rows]:
        s, built = self.settings, self.built[k]
        cloud = LastHop(self.server, self.service.ttft, s.seed, k)
        held = Held(cloud)
        await self._forget()
        await timed_answer(self.server, built, 1)  # it has read the prompt before
        paced = rule is not None and rule.paces
        self.device.reuses = paced  # type: ignore[attr-defined]  # DiSCo's device begins anew
        run = stream(
            built,
            plan=plan,
            server=held,
            device=self.device,
            rule=rule,
            max_tokens=s.max_tokens,
            rng=np.random.default_rng([s.seed, k]),
            reading_rate=1 / s.tpot_limit_s,
            wait=paced,  # only a pace that follows the device needs the time to do so
        )
        record = await recorded(run)
        gaps = np.diff([token.released_s for token in record.tokens])
        row = {"policy": policy, "request": k, "prompt_tokens": self.device.count(built)}
        row |= {"cloud_s": held.held_s, "held_s": cloud.held_s(), "tpot_max_s": gaps.max() if gaps.size else None}
        row |= {"recalls": sum(one.reason == LATE for one in record.handovers)} | request_row(record)
        tokens = [row | token_row(token) for token in record.tokens] if paced else []
        return row, [{name: token[name] for name in _TOKEN_COLUMNS} for token in tokens]


def _as_refined(ids: list[int], prompt: Prompt) -> Prompt:
    return ids
