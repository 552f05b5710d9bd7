"""DiSCo with an elastic device: a level of the model for each prompt length, in the place of the device's profile.

Symbols: l prompt length, w(l) the device's wait, T_m(l) TTFT of level m, b the budget, t a deadline.

**Which level.** For each length the largest level whose first token comes by a deadline t, counted from the request:
`w(l) + T_m(l) <= t`. Where no level keeps it, the one with the earliest first token. Since a larger level loses less
quality, these levels lose the least of all that keep t wherever it can be kept; a request is later than t only if it
would be with every level. So P99 TTFT is at most t if any levels achieve that. A natural t is a share of P99 with the
whole model, as the objectives of ElastiLM are shares of the whole model's latency. The wait of DiSCo-D's tail phase,
`F^-1(1 - alpha)`, would be no deadline for that phase: a device that starts then cannot answer by then.

**Which budget.** There are two readings of "the device may prefill a share b of all prompt tokens":

    prompt tokens  the paper's. The plan stays as it is: the device starts for the same requests at the same times,
                   whatever its level, so no first token is later than with the whole model (`elastic_device`).
    prefill work   a prompt token counts as the level's prefill time over the whole model's. Smaller levels spend
                   less, so the device may start for more requests (`plan_prefill_work`).

If the server is constrained, its share does not depend on the device's speed, and both readings are the same.

**Moving up.** The whole model may continue an answer that a smaller level began, by DiSCo's own rule: as soon as the
buffer covers its prefill of prompt and generated tokens, during which the level pauses (`move_up_rule`). As the
target of every hand-over the device uses the whole model, since the buffer covers its prefill.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.cost import CostModel, End
from disco_core.delivery import READING_RATE
from disco_core.dispatch import DispatchPlan, plan_device_constrained
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.migration import MigrationRule
from disco_core.simulate import Result
from disco_core.workload import LengthDistribution

_HALVINGS = 20  # of the budget's interval, to a millionth


class ElasticDevice(DeviceProfile):
    """A device with a model in several levels, one of which begins the answers to each prompt length.

    Its prefill_rate, decode_rate and startup are those of the largest level, the whole model, as which it takes over.

    levels         the profile of each level by its percent
    prompt_tokens  lengths, ascending, shape (lengths,)
    percent        the level of each, shape (lengths,)

    A length that is not listed takes the level of the next longer one, or else of the longest.
    """

    levels: Mapping[int, DeviceProfile]
    prompt_tokens: Ints
    percent: Ints

    def __init__(self, levels: Mapping[int, DeviceProfile], prompt_tokens: ArrayLike, percent: ArrayLike) -> None:
        known = _checked(levels)
        lengths, chosen = checks.tokens(prompt_tokens, "prompt_tokens"), checks.tokens(percent, "percent")
        if lengths.shape != chosen.shape:
            raise InputError(f"percent must be one level for each of {lengths.size} lengths, got {chosen.size}")
        if np.any(np.diff(lengths) <= 0):
            raise InputError("prompt_tokens must ascend strictly")
        if missing := set(chosen.tolist()) - set(known):
            raise InputError(f"there is no level {min(missing)} %, the levels are {', '.join(map(str, known))} %")
        whole = next(iter(known.values()))
        super().__init__(whole.prefill_rate, whole.decode_rate, whole.startup)
        for name, value in (("prompt_tokens", lengths), ("percent", chosen)):
            object.__setattr__(self, name, checks.read_only(value))
        object.__setattr__(self, "levels", known)

    __eq__, __hash__ = object.__eq__, object.__hash__  # of the fields of a profile, which are the whole model's alone

    def level(self, prompt_tokens: ArrayLike) -> Ints:
        """The level that begins the answer to a prompt of each length, in percent, same shape as the lengths."""
        lengths = checks.seconds(prompt_tokens, "prompt_tokens", unit=" tokens")
        known = np.minimum(lengths, self.prompt_tokens[-1])
        percent: Ints = self.percent[np.searchsorted(self.prompt_tokens, known)]
        return percent

    def ttft(self, prompt_tokens: ArrayLike) -> Floats:
        """`T_m(l)` in seconds, of each length's level m, same shape as the lengths."""
        lengths, level = np.asarray(prompt_tokens), self.level(prompt_tokens)
        times = [np.where(level == percent, one.ttft(lengths), 0.0) for percent, one in self.levels.items()]
        return np.asarray(np.sum(times, axis=0))

    def token_s(self, prompt_tokens: ArrayLike) -> Floats:
        """Seconds from token to token of each length's level, same shape as the lengths."""
        level = self.level(prompt_tokens)
        return np.asarray(sum((level == percent) / one.decode_rate for percent, one in self.levels.items()))

    def takeover_s(self, prefilled: ArrayLike) -> Floats:
        """t_m in seconds: the whole model's TTFT for prompt and generated tokens, same shape."""
        return super().ttft(prefilled)


def scaled_levels(
    whole: DeviceProfile, prefill: Mapping[int, float], decode: Mapping[int, float]
) -> dict[int, DeviceProfile]:
    """The profile of each level, from the whole model's and the level's times relative to it, by percent.

    prefill   time to prefill a token over the whole model's; decode: time to generate one, likewise
    """
    checks.instance_of(whole, DeviceProfile, "whole")
    if set(prefill) != set(decode):
        raise InputError(f"prefill and decode must have the same levels, got {[*prefill]} and {[*decode]}")
    return {
        percent: DeviceProfile(
            whole.prefill_rate / checks.positive(prefill[percent], f"prefill of {percent} %"),
            whole.decode_rate / checks.positive(decode[percent], f"decode of {percent} %"),
            whole.startup,
        )
        for percent in sorted(prefill, reverse=True)
    }


def elastic_device(
    levels: Mapping[int, DeviceProfile],
    plan: DispatchPlan,
    prompt_tokens: "ArrayLike | LengthDistribution",
    deadline_s: float,  # t
) -> ElasticDevice:
    """For each of the lengths the largest level whose first token comes by the deadline, after the plan's wait.

    Where the plan draws among several waits, the longest finite one decides. Where no level keeps the deadline, the
    one with the earliest first token is taken.
    """
    known, deadline = _checked(levels), checks.number(deadline_s, "deadline_s")
    checks.instance_of(plan, DispatchPlan, "plan")
    lengths = LengthDistribution.of(prompt_tokens).tokens
    row = np.searchsorted(plan.prompt_tokens, np.minimum(lengths, plan.prompt_tokens[-1]))
    delays = plan.delays_s[End.DEVICE, row]
    wait_s = np.where((plan.probability[row] > 0) & np.isfinite(delays), delays, 0.0).max(axis=1)
    first_s = np.stack([wait_s + one.ttft(lengths) for one in known.values()])
    keeps = first_s <= deadline
    chosen = np.where(keeps.any(axis=0), keeps.argmax(axis=0), first_s.argmin(axis=0))
    return ElasticDevice(known, lengths, np.array([*known])[chosen])


def plan_prefill_work(
    levels: Mapping[int, DeviceProfile],
    prompt_tokens: "ArrayLike | LengthDistribution",
    ttft: TTFTDistribution,
    budget: float,  # b
    deadline_s: float,  # t
    tail: float = 0.05,  # alpha
) -> tuple[DispatchPlan, ElasticDevice]:
    """DiSCo-D and its levels under a budget of prefill work: the device's, over the whole model's for all prompts.

    The plan is DiSCo-D for the largest budget of prompt tokens (`plan.budget`, at least b, to a millionth) that is
    expected to need no more work than b. Work grows with that budget: the device starts for more requests, and a
    length whose device waits less never gets a smaller level.
    """
    b, lengths = checks.fraction(budget, "budget"), LengthDistribution.of(prompt_tokens)
    within, above = b, 1.0

    def planned(share: float) -> tuple[DispatchPlan, ElasticDevice]:
        plan = plan_device_constrained(lengths, ttft, share, tail)
        return plan, elastic_device(levels, plan, lengths, deadline_s)

    if _expected_work(*planned(1.0), lengths, ttft) <= b:
        return planned(1.0)
    for _ in range(_HALVINGS):
        middle = (within + above) / 2
        if _expected_work(*planned(middle), lengths, ttft) <= b:
            within = middle
        else:
            above = middle
    return planned(within)


def _expected_work(
    plan: DispatchPlan, device: ElasticDevice, lengths: LengthDistribution, ttft: TTFTDistribution
) -> float:
    """Expected prefill work of a DiSCo-D plan, whose server starts at once, made for these lengths."""
    mass = lengths.tokens * lengths.counts
    started = (plan.probability * ttft.sf(plan.delays_s[End.DEVICE])).sum(axis=1)
    cost = {percent: device.prefill_rate / one.prefill_rate for percent, one in device.levels.items()}
    relative = np.array([cost[percent] for percent in device.percent.tolist()])
    return float(mass @ (started * relative) / mass.sum())


def move_up_rule(
    device: ElasticDevice, output_tokens: LengthDistribution, reading_rate: float = READING_RATE
) -> MigrationRule:
    """DiSCo's rule with the level that began the answer in the place of the server, and the whole model as target.

    Prices are such that moving up is always worth it: what it saves is quality.
    """
    checks.instance_of(device, ElasticDevice, "device")
    return MigrationRule(CostModel(0, 1, 0, 0), output_tokens, TTFTDistribution([0.0]), device, reading_rate)


def begun_tokens(race: Result, device: ElasticDevice, rule: MigrationRule | None = None) -> Ints:
    """Tokens of each answer that the level which began it generates, 0 where the server began it, shape (n,).

    race   of `simulate` with this device
    rule   that moves the answer: to the server, or up to the whole model (`move_up_rule`); None: it stays
    """
    checks.instance_of(race, Result, "race")
    checks.instance_of(device, ElasticDevice, "device")
    prompt, output = race.load.prompt_tokens, race.load.output_tokens
    begun: Ints = np.where(race.winner == End.DEVICE, output, 0)
    if rule is None or checks.instance_of(rule, MigrationRule, "rule").target is None:
        return begun
    known, of = np.unique(prompt, return_inverse=True)
    n = np.arange(1, int(output.max()) + 1)
    # summed token by token, as simulate does
    elapsed_s = np.cumsum(np.where(n == 1, 0.0, device.token_s(known)[:, None]), axis=1)
    moves = rule.moves(known[:, None], n, elapsed_s)
    if rule.target is End.DEVICE:
        moves &= device.level(known)[:, None] != next(iter(device.levels))
    at: Ints = np.where(moves.any(axis=1), n[moves.argmax(axis=1)], n[-1])
    return np.minimum(begun, at[of])


def _checked(levels: Any) -> dict[int, DeviceProfile]:
    """The levels, the largest first; InputError otherwise."""
    if not (
        isinstance(levels, Mapping) and levels and all(isinstance(one, DeviceProfile) for one in levels.values())
    ):
        raise InputError(f"levels must be device profiles by percent, got {levels!r:.80}")
    return {int(percent): levels[percent] for percent in sorted(levels, reverse=True)}
