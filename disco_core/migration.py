"""When generation moves from one endpoint to the other in mid-answer.

Symbols: l prompt length, n tokens generated so far, N the answer's length, r_c the reading rate, t_m the time the
target needs to take over, c_s^p ... c_d^d the prices.
"""

import math
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class StreamState:
    """The state of a live answer that a rule decides on, `now_s` seconds after the request was meant to start.

    record          tokens so far, hand-overs, charges
    prompt_tokens   length l of the target's prompt, by its own tokenizer
    reads           whether the target is running: it prefills its prompt, and generated tokens if it has any
    reading_s       seconds it has been running, in total
    read            tokens it has prefilled; None where unknown
    released        tokens released to the reader
    """

    record: Record
    prompt_tokens: int
    now_s: float
    reads: bool
    reading_s: float
    read: int | None
    released: int


class Rule:
    """The interface of a rule for live answers; the defaults never move, and release tokens at the reading rate.

    target        endpoint to which generation moves; None: it never moves
    reading_rate  r_c, tokens per second
    keeps_loser   whether the race's loser, if it is the target, finishes its prefill; otherwise it is cancelled at
                  the winner's first token
    reads_on      whether the target must reuse its prefix cache; one that does not is refused
    prepares      whether the target starts its prefill at the winner's first token, if it has not started before
    paces         whether `due_s` decides when tokens are released; otherwise the reading rate does
    """

    target: Any = None
    reading_rate: float = READING_RATE
    keeps_loser: bool = False
    reads_on: bool = False
    prepares: bool = False
    paces: bool = False

    def prompt_for(self, end: End, prompt: AnyPrompt) -> AnyPrompt:
        """The prompt for an endpoint, without generated tokens: by default the same for both."""
        return prompt

    def moves_now(self, state: StreamState) -> bool:
        """Whether to hand over after the token that was generated last."""
        return False

    def due_s(self, state: StreamState, index: int, source: End) -> float:
        """The earliest release of a token, after all tokens before it are released; called again at each release."""
        raise NotImplementedError

    def ask_again_s(self, state: StreamState) -> float:
        """While the target is awaited: when to call this again; `now_s` asks the source for more tokens meanwhile."""
        return math.inf


@dataclass(frozen=True, eq=False)
class MigrationRule(Rule):
    """DiSCo's rule, evaluated at every generated token: move when it saves cost and the reader will not notice.

    cost            prices; generation moves from the more expensive decode to the cheaper
    output_tokens   observed answer lengths, for `E[N - n | N > n]`
    server_ttft     F: as a target the server takes over within its `takeover_quantile`
    device          profile: as a target the device takes over in `T_d(l + n)`
    reading_rate    r_c, tokens per second
    keeps_loser     whether the race's loser, if it is the target, finishes its prefill; otherwise it is cancelled at
                    the winner's first token, as in DiSCo
    """

    cost: CostModel
    output_tokens: LengthDistribution
    server_ttft: TTFTDistribution
    device: DeviceProfile
    reading_rate: float = READING_RATE
    takeover_quantile: float = 0.95
    keeps_loser: bool = False

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

    def moves_now(self, state: StreamState) -> bool:
        """Whether moving saves cost and the reader will not notice."""
        elapsed_s = state.now_s - (state.record.ttft_s or 0.0)
        return bool(self.moves(state.prompt_tokens, len(state.record.tokens), elapsed_s))

    def expected_remaining(self, generated: ArrayLike) -> Floats:
        """`E[N - n | N > n]` over the observed lengths, same shape as n; 0 beyond the longest."""
        n = np.minimum(np.asarray(generated), self._remaining.size - 1)
        left: Floats = self._remaining[n]
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
        # floats of integral value: fast enough for every token, and the time may be infinite
        if self.target is End.DEVICE:
            # T_d(l + n), without the checks of `ttft`: it is computed at every token
            prefilled = np.asarray(prompt_tokens) + np.asarray(generated)
            takeover_s: ArrayLike = prefilled / self.device.prefill_rate + self.device.startup
        else:
            takeover_s = self._server_takeover_s
        needed: Floats = np.ceil(self.reading_rate * np.asarray(takeover_s))
        return needed

    def moves(self, prompt_tokens: ArrayLike, generated: ArrayLike, elapsed_s: ArrayLike) -> NDArray[np.bool_]:
        """Whether to hand over now, at the n-th token, `elapsed_s` after the first; arguments broadcast."""
        due = np.floor(np.asarray(elapsed_s) * self.reading_rate) + 1
        enough = np.asarray(generated) - due >= self._buffer(prompt_tokens, generated)
        now: NDArray[np.bool_] = self.saves(prompt_tokens, generated) & enough
        return now

    @cached_property
    def _remaining(self) -> Floats:
        # sums over N > n for every n at once: shorter answers say nothing of those still running
        lengths, counts = self.output_tokens.tokens, self.output_tokens.counts
        n = np.arange(lengths[-1] + 1)
        first = np.searchsorted(lengths, n, side="right")
        longer = np.concatenate([np.cumsum(counts[::-1])[::-1], [0]])[first]
        total = np.concatenate([np.cumsum((lengths * counts)[::-1])[::-1], [0]])[first]
        left: Floats = np.divide(total - n * longer, longer, out=np.zeros(n.size), where=longer > 0)
        return left

    @cached_property
    def _server_takeover_s(self) -> float:
        return float(self.server_ttft.quantile(self.takeover_quantile))
