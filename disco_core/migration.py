"""When generation moves from one endpoint to the other in mid-answer.

Symbols: l prompt length, n tokens generated so far, N the answer's length, r_c the reading rate, t_m the time the
target needs to take over, c_s^p ... c_d^d the prices.
"""

import math
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.cost import CostModel, End
from disco_core.delivery import READING_RATE
from disco_core.latency import DeviceProfile, TTFTDistribution
from disco_core.record import Record
from disco_core.workload import LengthDistribution

AnyPrompt = TypeVar("AnyPrompt")  # a prompt as an endpoint takes it


class Action(Enum):
    """What becomes of an answer that another endpoint might continue."""

    STAY = "the source goes on; a loser of the race is cancelled"
    PREFILL = "the source goes on, and the target prefills its prompt meanwhile"
    HAND_OVER = "the target continues after the token that was generated last"
    RECALL = "the target is late, so the source is asked for more tokens until it answers"


@dataclass(frozen=True, slots=True)
class Decision:
    """A rule's decision: the action, the reason if it is not what the rule wants, and when to be asked again.

    again_s   while the target is awaited: the time of the next decision; otherwise every token brings one
    """

    action: Action
    reason: str | None = None
    again_s: float = math.inf


STAY, PREFILL = Decision(Action.STAY), Decision(Action.PREFILL)
HAND_OVER, RECALL = Decision(Action.HAND_OVER), Decision(Action.RECALL)


@dataclass(frozen=True, slots=True)
class StreamState:
    """The state of a live answer that a rule decides on, `now_s` seconds after the request was meant to start.

    record          tokens so far, hand-overs, charges
    target          the endpoint that might continue
    prompt_tokens   length l of the target's prompt, by its own tokenizer
    running         whether the target is running: it prefills its prompt, and generated tokens if it has any
    running_s       seconds it has been running, in total
    prefilled       tokens it has prefilled; None where unknown
    prefix_cache    whether it continues from what it has prefilled before
    awaited         whether generation has been handed over to it and its next token is awaited
    released        tokens released to the reader
    """

    record: Record
    target: End
    prompt_tokens: int
    now_s: float
    running: bool = False
    running_s: float = 0.0
    prefilled: int | None = None
    prefix_cache: bool = False
    awaited: bool = False
    released: int = 0


class Rule:
    """The interface of a rule for live answers; the defaults never hand over, and release tokens at the reading rate.

    target        endpoint to which generation moves; None: it never moves
    reading_rate  r_c, tokens per second
    """

    target: Any = None
    reading_rate: float = READING_RATE

    def decide(self, state: StreamState) -> Decision:
        """What to do after the token that was generated last, or while the target is awaited."""
        return STAY

    def prompt_for(self, end: End, prompt: AnyPrompt) -> AnyPrompt:
        """The prompt for an endpoint, without generated tokens: by default the same for both."""
        return prompt

    def due_s(self, state: StreamState, index: int, source: End) -> float:
        """The earliest release of a token, after all tokens before it are released; called again at each release."""
        return (state.record.ttft_s or 0.0) + index / self.reading_rate


@dataclass(frozen=True, eq=False)
class MigrationRule(Rule):
    """DiSCo's rule, evaluated at every generated token: move when it saves cost and the reader will not notice.

    cost            prices; generation moves from the more expensive decode to the cheaper
    output_tokens   observed answer lengths, for `E[N - n | N > n]`
    server_ttft     F: as a target the server takes over within its `takeover_quantile`
    device          profile: as a target the device takes over in `T_d(l + n)`
    reading_rate    r_c, tokens per second
    finish_loser_prefill  whether the race's loser, if it is the target, finishes its prefill; otherwise it is
                    cancelled at the winner's first token, as in DiSCo
    """

    cost: CostModel
    output_tokens: LengthDistribution
    server_ttft: TTFTDistribution
    device: DeviceProfile
    reading_rate: float = READING_RATE
    takeover_quantile: float = 0.95
    finish_loser_prefill: bool = False

    def __post_init__(self) -> None:
        kinds: dict[str, type[Any]] = {
            "cost": CostModel,
            "output_tokens": LengthDistribution,
            "server_ttft": TTFTDistribution,
            "device": DeviceProfile,
        }
        for name, expected in kinds.items():
            checks.instance_of(getattr(self, name), expected, name)
        checks.positive(self.reading_rate, "reading_rate")
        checks.fraction(self.takeover_quantile, "takeover_quantile")

    @cached_property
    def target(self) -> End | None:
        """The endpoint with the cheaper decode, to which generation moves; None where they cost the same."""
        saved = self.cost.server_decode - self.cost.device_decode
        return None if saved == 0 else End.DEVICE if saved > 0 else End.SERVER

    def decide(self, state: StreamState) -> Decision:
        """Hand over if that saves cost and the reader will not notice."""
        n, elapsed_s = len(state.record.tokens), state.now_s - (state.record.ttft_s or 0.0)
        # as `moves`, in that order since it is asked at every token: numpy takes ten times as long for one number
        spare = n - (math.floor(elapsed_s * self.reading_rate) + 1)
        if spare >= self.reading_rate * self._takeover_s(state.prompt_tokens + n) and self.saves(
            state.prompt_tokens, n
        ):
            return HAND_OVER
        return PREFILL if self.finish_loser_prefill and state.running else STAY

    def expected_remaining(self, generated: ArrayLike) -> Floats:
        """`E[N - n | N > n]` over the observed lengths, same shape as n; 0 beyond the longest."""
        n = np.asarray(generated)
        lengths, longer, total = self._longer
        first = np.searchsorted(lengths, n, side="right")
        count = longer[first]
        left: Floats = np.divide(total[first] - n * count, count, out=np.zeros(n.shape), where=count > 0)
        return left

    def saves(self, prompt_tokens: ArrayLike, generated: ArrayLike) -> NDArray[np.bool_]:
        """Whether the expected saving exceeds the target's prefill of prompt and generated tokens."""
        cost, left = self.cost, self.expected_remaining(generated)
        if self.target is None:
            return np.zeros(np.broadcast(prompt_tokens, left).shape, np.bool_)
        price = cost.device_prefill if self.target is End.DEVICE else cost.server_prefill
        saved = abs(cost.server_decode - cost.device_decode) * left
        worth: NDArray[np.bool_] = saved > price * (np.asarray(prompt_tokens) + np.asarray(generated))
        return worth

    def buffer_needed(self, prompt_tokens: ArrayLike, generated: ArrayLike) -> Ints:
        """`B = ceil(r_c t_m)`: tokens the buffer must hold while the target takes over, at most 2^62."""
        return np.minimum(self._buffer(prompt_tokens, generated), 2.0**62).astype(np.int64)

    def _buffer(self, prompt_tokens: ArrayLike, generated: ArrayLike) -> Floats:
        # floats of integral value: the time may be infinite
        prefilled = np.asarray(prompt_tokens) + np.asarray(generated)
        needed: Floats = np.ceil(self.reading_rate * np.asarray(self._takeover_s(prefilled)))
        return needed

    def _takeover_s(self, prefilled: Any) -> Any:
        """t_m: the device's T_d(l + n), without the checks of `ttft`; the server's does not depend on the prefix."""
        if self.target is End.DEVICE:
            return prefilled / self.device.prefill_rate + self.device.startup
        return self._server_takeover_s

    def moves(self, prompt_tokens: ArrayLike, generated: ArrayLike, elapsed_s: ArrayLike) -> NDArray[np.bool_]:
        """Whether to hand over now, at the n-th token, `elapsed_s` after the first; arguments broadcast."""
        due = np.floor(np.asarray(elapsed_s) * self.reading_rate) + 1
        enough = np.asarray(generated) - due >= self._buffer(prompt_tokens, generated)
        now: NDArray[np.bool_] = self.saves(prompt_tokens, generated) & enough
        return now

    @cached_property
    def _longer(self) -> tuple[Ints, Ints, Ints]:
        # how many answers are longer than each observed length, and their tokens: shorter ones say nothing of those
        # that are still running
        lengths, counts = self.output_tokens.tokens, self.output_tokens.counts
        longer, total = (np.append(np.cumsum(of[::-1])[::-1], 0) for of in (counts, lengths * counts))
        return lengths, longer, total

    @cached_property
    def _server_takeover_s(self) -> float:
        return float(self.server_ttft.quantile(self.takeover_quantile))
