"""When each endpoint starts: one type for every policy, the paper's two plans and their baselines.

Symbols: l prompt length, p(l) its frequency, b the budget ratio, F the server's TTFT distribution,
alpha the tail share, w(l) the device's wait, l_th the length threshold.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.cost import Constraint, End
from disco_core.errors import InputError
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.workload import LengthDistribution

NEVER = np.inf  # a delay: the plan does not start that endpoint
_FORMAT = {"format": "disco_core.DispatchPlan", "version": 1}  # of a plan as text
_DENSE = 1 << 16  # longest planned length that is looked up in a table instead of searched


@dataclass(frozen=True, eq=False)
class DispatchPlan:
    """Per prompt length, a small set of (delay per endpoint, probability): every policy is a value of this type.

    prompt_tokens  planned lengths, ascending, shape (lengths,)
    delays_s       seconds from request to the endpoint's start, inf for never; shape (endpoints, lengths, choices)
    probability    of each choice, rows sum to 1, shape (lengths, choices)
    constraint     the constrained endpoint, whose share `budget` limits; None if the policy has no budget

    A length that was not planned takes the entry of the next longer planned one, or else of the longest.
    """

    name: str
    prompt_tokens: Ints
    delays_s: Floats
    probability: Floats
    constraint: Constraint | None = None
    budget: float = float("nan")

    def __post_init__(self) -> None:
        lengths = checks.tokens(self.prompt_tokens, "prompt_tokens")
        delays = checks.seconds(self.delays_s, "delays_s", allow_inf=True)
        chance = checks.numbers(self.probability, "probability")
        if delays.shape != (len(End), *chance.shape) or chance.shape[:1] != lengths.shape or chance.ndim != 2:
            raise InputError(
                f"delays_s {delays.shape} must be (endpoints, lengths, choices), probability {chance.shape} "
                f"(lengths, choices), for {lengths.size} lengths"
            )
        if np.any(np.diff(lengths) <= 0):
            raise InputError("prompt_tokens must ascend strictly")
        total = chance.sum(axis=1)
        if chance.min() < 0 or np.abs(total - 1.0).max() > 1e-9:
            bad = chance.min() if chance.min() < 0 else total[np.argmax(np.abs(total - 1.0))]
            raise InputError(f"probability must be non-negative and sum to 1 for every length, got {bad}")
        if np.any(np.isinf(delays.min(axis=0)) & (chance > 0)):
            raise InputError(
                "delays_s starts neither endpoint for some choice: one delay of each pair must be finite"
            )
        if self.constraint is not None:
            checks.instance_of(self.constraint, Constraint, "constraint")
            object.__setattr__(self, "budget", checks.fraction(self.budget, "budget"))
        for name, value in (("prompt_tokens", lengths), ("delays_s", delays), ("probability", chance)):
            object.__setattr__(self, name, checks.read_only(value))

    def draw(self, prompt_tokens: ArrayLike, rng: np.random.Generator | None = None) -> Floats:
        """Delays for each request, shape (endpoints, n); unpacks as `server_delay_s, device_delay_s`.

        A plan with one choice per length needs no rng; a random plan raises InputError without it.
        """
        entry = self._entry(checks.tokens(prompt_tokens, "prompt_tokens"))
        choices = self.probability.shape[1]
        if choices > 1:
            u = checks.generator(rng).random(entry.size)
            chosen = entry * choices
            for bound in self._bounds:
                chosen += u >= bound[entry]
            entry = chosen
        flat = self.delays_s.reshape(len(End), -1)
        return np.stack([delay[entry] for delay in flat])

    def expected_shares(self, prompt_tokens: ArrayLike, ttft: TTFTDistribution, device: DeviceProfile) -> Floats:
        """Expected share of prompt tokens each endpoint starts for, shape (endpoints,), for these lengths and F."""
        checks.instance_of(ttft, TTFTDistribution, "ttft")
        lengths = LengthDistribution.of(prompt_tokens)
        entry = self._entry(lengths.tokens)
        server, device_delay = self.delays_s[:, entry]
        started_device = self._after(device_delay, server, ttft)
        # the device's first token comes at a known time, so whether the server starts is certain
        started_server = server < device_delay + device.ttft(lengths.tokens)[:, None]
        mass = lengths.tokens * lengths.counts
        chance = self.probability[entry]
        return np.array([mass @ (chance * s).sum(axis=1) / mass.sum() for s in (started_server, started_device)])

    @staticmethod
    def _after(delay: Floats, server: Floats, ttft: TTFTDistribution) -> Floats:
        # P(delay < server + TTFT), with the sums that the race compares; a server that never starts never answers
        share = np.ones(delay.shape)
        for at in np.unique(server[np.isfinite(server)]):
            here = server == at
            below = np.searchsorted(at + ttft.values_s, delay[here], side="right")
            share[here] = 1.0 - np.concatenate([[0.0], ttft.cumulative])[below]
        return share

    def to_json(self) -> str:
        """The plan as text that `from_json` reads, exactly; null stands for a delay of inf and a budget of NaN."""
        delays = [[[None if d == NEVER else d for d in row] for row in end] for end in self.delays_s.tolist()]
        fields = {
            "name": self.name,
            "constraint": None if self.constraint is None else self.constraint.value,
            "budget": None if np.isnan(self.budget) else self.budget,
            "prompt_tokens": self.prompt_tokens.tolist(),
            "delays_s": delays,
            "probability": self.probability.tolist(),
        }
        return json.dumps(_FORMAT | fields)

    @classmethod
    def from_json(cls, text: str) -> "DispatchPlan":
        """A plan that `to_json` wrote; InputError, in one line, for any other text, also of another version."""
        found = _fields(text)
        try:
            constraint = None if found["constraint"] is None else Constraint(found["constraint"])
        except ValueError:
            allowed = ", ".join(one.value for one in Constraint)
            raise InputError(
                f"constraint must be null or one of {allowed}, got {found['constraint']!r:.80}"
            ) from None
        return cls(
            checks.instance_of(found["name"], str, "name"),
            checks.tokens(found["prompt_tokens"], "prompt_tokens"),
            checks.seconds(_never(found["delays_s"]), "delays_s", allow_inf=True),
            checks.numbers(found["probability"], "probability"),
            constraint,
            found["budget"] if constraint else float("nan"),
        )

    def _entry(self, lengths: Ints) -> Ints:
        known: Ints = np.minimum(lengths, self.prompt_tokens[-1])
        return np.searchsorted(self.prompt_tokens, known) if self._table is None else self._table[known]

    @cached_property
    def _table(self) -> Ints | None:
        longest = int(self.prompt_tokens[-1])
        return np.searchsorted(self.prompt_tokens, np.arange(longest + 1)) if longest <= _DENSE else None

    @cached_property
    def _bounds(self) -> Floats:
        # a request takes the choice after the last bound its u reaches, so a choice of probability 0 is never taken
        return np.cumsum(self.probability, axis=1)[:, :-1].T


def plan_server_only() -> DispatchPlan:
    """Every request to the server: the paper's "vLLM" baseline."""
    return _anywhere("server only", [(0.0, NEVER)], [1.0])


def plan_device_only() -> DispatchPlan:
    """Every request to the device: the paper's "llama.cpp" baseline."""
    return _anywhere("device only", [(NEVER, 0.0)], [1.0])


def plan_stochastic(budget: float, constraint: Constraint, *, both: bool = False) -> DispatchPlan:
    """Stoch-S and Stoch-D: random dispatch under the same budget.

    The constrained endpoint answers alone with probability b, otherwise the other one alone. With `both`, the more
    favourable reading: the other one always starts, and the constrained endpoint as well with probability b.
    """
    b = checks.fraction(budget, "budget")
    constrained = checks.instance_of(constraint, Constraint, "constraint").end
    alone = [(0.0, NEVER), (NEVER, 0.0)]
    with_constrained = (0.0, 0.0) if both else alone[constrained]
    letter = constraint.name[0] + ("+" if both else "")
    return _anywhere(f"Stoch-{letter}", [with_constrained, alone[1 - constrained]], [b, 1.0 - b], constraint, b)


def plan_device_constrained(
    prompt_tokens: "ArrayLike | LengthDistribution",
    ttft: TTFTDistribution,
    budget: float,  # b
    tail: float = 0.05,  # alpha
) -> DispatchPlan:
    """DiSCo-D: the server at once; the device after w(l) seconds if no first token has come.

    Tail: every length waits `w_tail = F^-1(1 - min(alpha, b))`. Mean: the rest of b goes to the shortest prompts
    first, w(l) = 0; the length at which it runs out mixes two waits, so that with these lengths and this F the
    device's expected share of prompt tokens is exactly b, also where F has atoms. (Where the server answers at 0
    seconds the device cannot start: with such samples the share is at most `1 - F(0)`.)
    """
    b, alpha = checks.fraction(budget, "budget"), checks.fraction(tail, "tail")
    checks.instance_of(ttft, TTFTDistribution, "ttft")
    lengths = LengthDistribution.of(prompt_tokens)
    mass = lengths.tokens * lengths.counts / (lengths.tokens @ lengths.counts)  # l p(l) / E[l]
    # with a budget of 0 the device never starts, not even at a TTFT beyond the longest sample
    level = max(0.0, 1.0 - min(alpha, b) - 1e-15)  # 1 - 0.7 is a little more than 0.3
    w_tail = float(ttft.quantile(level)) if b > 0 else NEVER
    tail_share, full_share = float(ttft.sf(w_tail)), float(ttft.sf(0.0))
    spent = np.cumsum(mass * (full_share - tail_share))
    rest = b - tail_share
    boundary = int(np.searchsorted(spent, rest, side="right"))
    waits = np.full((lengths.tokens.size, 2), w_tail)
    waits[:boundary] = 0.0
    early = np.zeros(lengths.tokens.size)  # probability of the first, the shorter, of the two waits
    if boundary < lengths.tokens.size and b > 0:
        # at the boundary the device starts with the tail's share and the rest of the budget
        left = rest - (spent[boundary - 1] if boundary else 0.0)
        waits[boundary], early[boundary] = _mix(ttft, tail_share + left / mass[boundary])
    server = np.zeros_like(waits)
    return DispatchPlan(
        "DiSCo-D",
        lengths.tokens,
        np.stack([server, waits]),
        np.stack([early, 1.0 - early], axis=1),
        Constraint.DEVICE,
        b,
    )


def plan_server_constrained(prompt_tokens: "ArrayLike | LengthDistribution", budget: float) -> DispatchPlan:
    """DiSCo-S: up to l_th the device only; longer prompts start both endpoints at once.

    l_th is the smallest threshold whose server share of prompt tokens is within b, so the share lies in
    (b - share of one length, b].
    """
    b = checks.fraction(budget, "budget")
    lengths = LengthDistribution.of(prompt_tokens)
    up_to = np.cumsum(lengths.tokens * lengths.counts)
    # server share if l_th were this length, from integers so that rounding does not miss a share of exactly b
    beyond = (up_to[-1] - up_to) / up_to[-1]
    threshold = int(np.searchsorted(-beyond, -b, side="left")) if b < 1.0 else -1
    server = np.where(np.arange(lengths.tokens.size) <= threshold, NEVER, 0.0)[:, None]
    return DispatchPlan(
        "DiSCo-S",
        lengths.tokens,
        np.stack([server, np.zeros_like(server)]),
        np.ones_like(server),
        Constraint.SERVER,
        b,
    )


def plan_disco(
    constraint: Constraint,
    prompt_tokens: "ArrayLike | LengthDistribution",
    ttft: TTFTDistribution,
    budget: float,  # b
    *,
    tail: float = 0.05,  # alpha
) -> DispatchPlan:
    """DiSCo: `plan_device_constrained` where the device is the constrained endpoint, else `plan_server_constrained`.

    DiSCo-S uses neither F nor the tail; both are checked all the same.
    """
    checks.instance_of(ttft, TTFTDistribution, "ttft"), checks.fraction(tail, "tail")
    if checks.instance_of(constraint, Constraint, "constraint") is Constraint.DEVICE:
        return plan_device_constrained(prompt_tokens, ttft, budget, tail)
    return plan_server_constrained(prompt_tokens, budget)


def _fields(text: str) -> dict[str, Any]:
    """The fields of a plan as text, their names and the version checked."""

    def no_number(word: str) -> None:
        raise ValueError(f"{word} is no number of JSON")

    try:
        found = json.loads(checks.instance_of(text, str, "a plan as text"), parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"a plan must be a text that to_json wrote, this is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT["format"]:
        raise InputError(f"a plan must be a text that to_json wrote, this is no plan: {text!r:.60}")
    if (version := found.get("version")) is True or version != _FORMAT["version"]:
        raise InputError(f"a plan must be of version {_FORMAT['version']}, got version {version!r:.40}")
    names = {"name", "constraint", "budget", "prompt_tokens", "delays_s", "probability"}
    if missing := sorted(names - found.keys()):
        raise InputError(f"a plan must have all its fields, this one is without {', '.join(missing)}")
    if unknown := sorted(found.keys() - names - _FORMAT.keys()):
        raise InputError(f"a plan must have no other fields than to_json writes, this one has {', '.join(unknown)}")
    return found


def _never(delays: Any) -> Any:
    """Delays from JSON, with inf for null."""
    if isinstance(delays, list):
        return [_never(one) for one in delays]
    return NEVER if delays is None else delays


def _mix(ttft: TTFTDistribution, share: float) -> tuple[tuple[float, float], float]:
    """Two neighbouring waits and the probability of the shorter, so that the device starts with `share`."""
    at = int(np.searchsorted(ttft.cumulative, 1.0 - share, side="left"))
    long = float(ttft.values_s[min(at, ttft.values_s.size - 1)])
    before = int(np.searchsorted(ttft.values_s, long, side="left"))
    short = float(ttft.values_s[before - 1]) if before else 0.0
    low, high = float(ttft.sf(long)), float(ttft.sf(short))
    return (short, long), min(max((share - low) / (high - low), 0.0), 1.0) if high > low else 0.0


def _anywhere(
    name: str,
    delays: list[tuple[float, float]],
    probability: list[float],
    constraint: Constraint | None = None,
    budget: float = float("nan"),
) -> DispatchPlan:
    """A plan that treats every length alike: one entry, its choices as (server delay, device delay)."""
    lengths = np.ones(1, np.int64)
    return DispatchPlan(name, lengths, np.array(delays).T[:, None, :], np.array([probability]), constraint, budget)
