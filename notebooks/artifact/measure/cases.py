"""The streams of the fault campaign: for each number its plan, rule, faults and moments, drawn from one seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from artifact.data import model
from artifact.measure.proxy import MALFORMED, STATUS, Fault
from disco_core.cost import CostModel
from disco_core.dispatch import DispatchPlan
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.migration import RECALL, STAY, Decision, MigrationRule, StreamState
from disco_core.record import LATE
from disco_core.workload import LengthDistribution

READER, DEVICE, TWO = "reader leaves", "device breaks", "two faults"
SINGLE = ("SIGKILL", "SIGSTOP", "cut", "slow", *STATUS, "malformed", READER, DEVICE)
KINDS = ("none", *SINGLE, TWO)
MOVES = ("stays", "to the device", "to the server")
DELAYS = {
    "both": (0.0, 0.0),
    "server": (0.0, math.inf),
    "device": (math.inf, 0.0),
    "server, then device": (0.0, 0.15),
    "device, then server": (0.15, 0.0),
}
VARIANTS: dict[str, Sequence[str]] = {
    "cut": ("at once", "reset", "closed"),
    "slow": ("pause", "trickle", "late"),
    "429": ("completions", "everything"),
    "503": ("completions", "everything"),
    "malformed": tuple(MALFORMED),
    READER: ("break", "walk away", "close", "cancel"),
}
TOKENS = (16, 24)  # of an answer: fewest, most
RATES = (2.0, 6.0, 15.0)  # reading rates by which a rule decides: the faster the reader, the later the hand-over
UNUSUAL = (  # prompts whose answers have characters of several tokens
    "Write ten different emojis in a row.",
    "Say good morning in Japanese, Arabic, Greek and Russian.",
    "Repeat exactly: “naïve” — 東京 🦊🎉 ½ € ñandú",
)


@dataclass(frozen=True)
class EarlyRule(MigrationRule):
    """DiSCo's rule, which recalls the source if the target takes longer than `recall_s`, once."""

    recall_s: float = math.inf

    def decide(self, state: StreamState) -> Decision:
        """As DiSCo's rule does; while the target is awaited, recall the source when its time is over."""
        handovers = state.record.handovers
        if any(one.reason == LATE for one in handovers):
            return STAY
        if state.awaited:
            until = handovers[-1].time_s + self.recall_s
            return RECALL if state.now_s >= until else replace(STAY, again_s=until)
        return super().decide(state)


@dataclass(frozen=True)
class Case:
    """One stream of the campaign.

    starts     which endpoints the plan starts, and in which order
    breaks_at  tokens after which the device model raises an error; None: never
    continues  whether the device may continue an answer that the server has begun
    wait       whether tokens are released at a reader's pace
    """

    number: int
    kind: str
    moves: str
    starts: str
    prompt: str
    max_tokens: int
    faults: tuple[Fault, ...]
    breaks_at: int | None
    rate: float
    recall_s: float
    finish_loser_prefill: bool
    continues: bool
    wait: bool
    first_token_s: float | None
    seed: int

    @property
    def plan(self) -> DispatchPlan:
        """The delays of both endpoints, for every length."""
        delays = np.array(DELAYS[self.starts])[:, None, None]
        return DispatchPlan(self.starts, np.array([1]), delays, np.ones((1, 1)))

    @property
    def rule(self) -> EarlyRule | None:
        """A rule whose prices make an early hand-over worthwhile; None where the answer stays."""
        if self.moves == "stays":
            return None
        expensive = {"server_decode" if self.moves == "to the device" else "device_decode": 1e-3}
        prices = {"server_prefill": 1e-9, "server_decode": 1e-9, "device_prefill": 1e-9, "device_decode": 1e-9}
        return EarlyRule(
            CostModel(**(prices | expensive)),
            LengthDistribution.of(np.array([200, 400])),
            TTFTDistribution(np.array([0.15])),
            DeviceProfile(200.0, 40.0),
            reading_rate=self.rate,
            finish_loser_prefill=self.finish_loser_prefill,
            recall_s=self.recall_s,
        )


def case(number: int, seed: int, prompts: Sequence[str]) -> Case:
    """The stream with this number: kinds of faults and directions of migration take turns, the rest is drawn."""
    rng = np.random.default_rng([seed, number])
    kind, moves = KINDS[number % len(KINDS)], MOVES[number // len(KINDS) % len(MOVES)]
    tokens = int(rng.integers(TOKENS[0], TOKENS[1] + 1))
    kinds = [] if kind == "none" else rng.permutation(SINGLE)[:2].tolist() if kind == TWO else [kind]
    faults = tuple(_fault(one, tokens, rng) for one in kinds)
    starts = _starts(kinds, moves, rng)
    text = str(rng.choice(UNUSUAL if rng.random() < 0.2 else prompts))
    first_s = float(rng.uniform(0.1, 0.6)) if rng.random() < 0.25 else None
    return Case(
        number=number,
        kind=kind,
        moves=moves,
        starts=starts,
        prompt=model.build(text),
        max_tokens=tokens,
        faults=faults,
        breaks_at=int(rng.integers(0, 7)) if DEVICE in kinds else None,
        rate=float(rng.choice(RATES)),
        recall_s=float(rng.choice([0.05, 0.3, math.inf])),
        finish_loser_prefill=bool(rng.random() < 0.3),
        continues=bool(rng.random() < 0.75),
        wait=bool(rng.random() < 0.5),
        first_token_s=first_s,
        seed=int(rng.integers(2**31)),
    )


def _starts(kinds: Sequence[str], moves: str, rng: np.random.Generator) -> str:
    """Most answers begin where they are to move from; one that stays starts the endpoint that the fault is for."""
    home = {"to the device": "server", "to the server": "device"}.get(moves)
    if home and rng.random() < 0.6:
        return home
    unaffected = {"device" if set(kinds) - {DEVICE, READER} else "", "server" if kinds == [DEVICE] else ""}
    return str(rng.choice([one for one in DELAYS if home or one not in unaffected]))


def _fault(kind: str, tokens: int, rng: np.random.Generator) -> Fault:
    """A fault at once, after some events of the server, or after some time."""
    moment: dict[str, Any] = {}
    draw = 1.2 * rng.random() if kind in STATUS else rng.random()  # a request is refused before it is sent
    if kind != READER and draw < 0.55:
        moment = {"after_events": int(rng.integers(0, tokens + 3)), "after_s": float(rng.uniform(0.0, 0.02))}
    elif draw < 0.85 or kind == READER:
        moment = {"after_s": float(rng.uniform(0.0, 0.6))}
    variants = VARIANTS.get(kind, ("",))
    variant = str(variants[int(rng.integers(len(variants)))])
    lasts_s = float(rng.choice([rng.uniform(0.05, 1.0), rng.uniform(1.0, 3.0)]))
    return Fault(kind, variant, lasts_s=lasts_s, share=float(rng.random()), **moment)


def leaves(faults: Sequence[Fault]) -> Fault | None:
    """When the reader leaves, if it does."""
    return next((fault for fault in faults if fault.kind == READER), None)
