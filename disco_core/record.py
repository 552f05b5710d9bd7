"""What a live stream leaves behind: its tokens, who made them when, hand-overs, charges and failures."""

from dataclasses import dataclass, field

from disco_core.cost import End
from disco_core.delivery import ROUNDING_S
from disco_core.errors import EndpointError, StreamError


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """A token as the reader gets it: made by `source` at `generated_s`, due to the reader at `due_s`."""

    index: int
    text: str
    id: int | None
    source: End
    generated_s: float
    due_s: float

    @property
    def released_s(self) -> float:
        """When the reader gets it: when it is due, or as soon as it is made."""
        return max(self.generated_s, self.due_s)


LATE = "the target was late"


@dataclass(frozen=True, slots=True)
class HandOver:
    """A change of end after `at` tokens; `reason` is None for a migration, otherwise a failure, or `LATE`."""

    at: int
    source: End
    target: End
    time_s: float
    reason: str | None = None


@dataclass
class Record:
    """What happened. Unknown is None. Charges are tokens per end, in the order of `End`.

    late_s             seconds after its `released_s` at which each token really came; empty with `wait=False`
    prefill, decode    charged: full prefixes of all work that was started (of an end that reuses, what is new), and
                       every token that was made, also those nobody got to see; the tokens of a piece of work as
                       soon as it has stopped
    failover_prefill   the part of prefill that only a failure caused, apart from the budget
    refusals           why a hand-over the rule wanted did not happen, once each
    unconfirmed        cancelled work whose end did not confirm in time that it stopped
    """

    ttft_s: float | None = None
    winner: End | None = None
    tokens: list[StreamedToken] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    handovers: list[HandOver] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    started: list[bool] = field(default_factory=lambda: [False, False])
    prefill: list[int] = field(default_factory=lambda: [0, 0])
    decode: list[int] = field(default_factory=lambda: [0, 0])
    failover_prefill: list[int] = field(default_factory=lambda: [0, 0])
    unconfirmed: list[int] = field(default_factory=lambda: [0, 0])
    failures: list[EndpointError] = field(default_factory=list)
    error: StreamError | None = None
    complete: bool = False

    @property
    def migrated_at(self) -> int:
        """Tokens generated at the migration, 0 without one."""
        return next((one.at for one in self.handovers if one.reason is None), 0)

    @property
    def delay_num(self) -> int:
        """Tokens generated after they were due."""
        return sum(token.generated_s > token.due_s + ROUNDING_S for token in self.tokens)
