"""P/D-Device, DiSCo, the cloud alone and the device alone, measured on two live endpoints of an idle machine.

The device is the model in this process, one thread. The cloud is the same model behind llama.cpp's server. Its
prefill would be no faster than the device's, so every prompt is in its prefix cache before the request, and its first
token is delayed to the TTFT of a public service (emulated network delay). Its tokens, and the device's prefill and
tokens, are real. Prompts are refined beforehand, and no time is charged for that. Prompt lengths are given in seconds
of prefill on the device, so that the comparison is the same on a faster machine. Four tables:

    profile    both endpoints at once: the device's TTFT by prompt length, the time between tokens of each; before the
               answers, for the plan, and among them, for the simulation compared with them
    loss       share of a prompt's self-information that is lost at each share of its tokens
    requests   every prompt under every policy, within seconds of each other, in rotating order
    tokens     the tokens of P/D-Device's answers, with their times
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from functools import partial
from typing import Any

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
from artifact.measure.network_delay import LastHop, Wrapped
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.cost import Constraint
from disco_core.dispatch import DispatchPlan, plan_device_only, plan_server_constrained, plan_server_only
from disco_core.endpoints.base import Endpoint, Generation, Prefix, Prompt, Token, non_negative_int
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile
from disco_core.live.stream import stream
from disco_core.migration import MigrationRule, Rule
from disco_core.record import LATE
from disco_core.systems.compression import keep, protected_spans, self_information
from disco_core.systems.pd_device.take_over import TakeOver, plan_together

Rows = list[dict[str, Any]]
CONTEXT = 4096  # context size of each endpoint: tokens of prompt and answer
PACE_TOKENS = 256  # of the prompt that measures the device's prefill rate
LEAST_TOKENS = 64  # of a prompt, including the opening and the question
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)  # rho, for which the loss is measured
OPENING, QUESTION = "People sent these requests to a help desk.", " Which of them would you answer first, and why?"
SPARE = 0.25  # the device's prefill may take so much longer than expected
RESUME_QUANTILE = 0.95  # of the cloud's TTFT, for the time at which it is recalled
TABLES = ("prompts", "services", "ttft_quantiles", "ttft_quantiles_as_parsed", "output_tokens", "phones")
_TOKEN_COLUMNS = ["policy", "request", "token", "source", "generated_s", "released_s"]


def measure(run: Run) -> Tables:
    """All tables; the notebook `measure_pd_device` describes the settings.

    InputError for invalid settings, EndpointError if an endpoint is not available; nothing is left running.
    """
    _check(run.settings)
    with ends(prefix_cache=True, context=CONTEXT) as (server, device):
        return run_in_thread(_Session(run, server, device).run())


def _check(s: Any) -> None:
    traces.service(s.service)  # raises for an unknown one
    for name in ("prompts", "max_tokens"):
        checks.count(getattr(s, name), name)
    for name in ("shortest_s", "longest_s", "tpot_limit_s"):
        checks.positive(getattr(s, name), name)
    checks.number(s.rho, "rho", 0.0, 1.0, above=True)
    non_negative_int(s.seed, "seed")
    if s.shortest_s >= s.longest_s:
        raise InputError(f"shortest_s must be below longest_s={s.longest_s}, got {s.shortest_s}")
    if s.max_tokens > CONTEXT // 2:
        raise InputError(
            f"max_tokens must be at most {CONTEXT // 2}, half of each endpoint's context, got {s.max_tokens}"
        )


def long_prompts(tokens: Sequence[float]) -> list[list[tuple[str, bool]]]:
    """Prompts of about so many tokens: many requests and one question, in segments of (text, protected)."""
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


class Held(Wrapped):
    """An endpoint, and the seconds for which its generations have run: the busy time of a slot in the cloud."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self.held_s = 0.0

    def generate(self, prefix: Prefix) -> Generation:
        """The endpoint's tokens."""
        return _Timed(self, self.endpoint.generate(prefix))


class _Timed(Generation):
    """A generation whose running time is added to what its endpoint was held."""

    def __init__(self, held: Held, inner: Generation) -> None:
        super().__init__(self._timed())
        self._held, self._inner = held, inner

    @property
    def undelivered(self) -> int:  # type: ignore[override]
        """Tokens that are generated and have not arrived."""
        return self._inner.undelivered

    async def _timed(self) -> AsyncGenerator[Token, None]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with aclosing(self._inner) as tokens:
                async for token in tokens:
                    yield token
        finally:
            self._held.held_s += loop.time() - began


class _Session:
    """One measuring session on two endpoints with a prefix cache."""

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
            await self._both(0)  # warm-up
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
        """The device's prefill rate in tokens per second, by the median time of three trials."""
        (pieces,), times = long_prompts([PACE_TOKENS]), []
        built = "".join(text for text, _ in pieces)
        for _ in range(3):
            await self._forget()
            times.append((await timed_answer(self.device, built, 1))[0][1])
        return self.device.count(built) / float(np.median(times))

    def _ask(self, pace: float) -> None:
        """Choose prompts whose prefill takes the device the seconds in the settings, at equal ratios."""
        s = self.settings
        most = CONTEXT - s.max_tokens - 128  # the last request of a prompt may exceed the wanted length
        tokens = np.geomspace(s.shortest_s, s.longest_s, s.prompts) * pace
        self.pieces = long_prompts(np.clip(tokens, LEAST_TOKENS, most).tolist())
        self.built = ["".join(text for text, _ in pieces) for pieces in self.pieces]

    async def _forget(self) -> dict[str, Any]:
        """Empty the device's prefix cache by another prompt, "Hi"; the row has its time to first token."""
        answer = await timed_answer(self.device, "Hi", 1)
        first_s = answer[0][1] if answer else None
        return {"end": "device", "prompt_tokens": self.device.count("Hi"), "device_s": first_s}

    async def _both(self, k: int) -> Rows:
        """Both endpoints at once, as in the answers; "Hi" gives the start of the device's line."""
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
                "DiSCo": (plan_server_constrained(lengths, 1.0), disco),  # both endpoints at once, as in P/D-Device
                "P/D-Device": (plan_together(), take_over),
                "P/D-Device, refined": (
                    plan_together(refined=True),
                    replace(take_over, refine=partial(_as_refined, ids)),
                ),
            }
            for ids in refined
        ]

    async def _answers(self, k: int, policies: dict[str, tuple[DispatchPlan, Rule | None]]) -> dict[str, Rows]:
        """One prompt under every policy, in an order that rotates with the prompt."""
        found: dict[str, Rows] = {"among": [], "requests": [], "tokens": []}
        for policy in np.roll(list(policies), k):
            beside = policy == "device only"  # the policy whose TTFT includes the device's prefill
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
        await timed_answer(self.server, built, 1)  # puts the prompt into its prefix cache
        paced = isinstance(rule, TakeOver)
        self.device.prefix_cache = paced  # DiSCo's device starts without a prefix cache
        run = stream(
            built,
            plan=plan,
            server=held,
            device=self.device,
            rule=rule,
            max_tokens=s.max_tokens,
            rng=np.random.default_rng([s.seed, k]),
            reading_rate=1 / s.tpot_limit_s,
            wait=paced,  # only a rule that controls the pace needs the release times
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
