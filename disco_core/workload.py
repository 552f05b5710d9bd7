"""The requests: when they arrive, how long their prompts are and how long the answers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import InputError


@dataclass(frozen=True, eq=False)
class LengthDistribution:
    """How often each length occurs: `tokens` ascending, `counts` positive, both of shape (lengths,)."""

    tokens: Ints
    counts: Ints

    def __init__(self, tokens: ArrayLike, counts: ArrayLike) -> None:
        length, count = checks.tokens(tokens, "tokens"), checks.tokens(counts, "counts")
        if length.shape != count.shape:
            raise InputError(f"tokens and counts must be one of each, got {length.size} and {count.size}")
        falls = np.diff(length) <= 0
        if falls.any():
            at = int(np.argmax(falls))
            raise InputError(f"tokens must ascend strictly, got {length[at]} and then {length[at + 1]}")
        if length.astype(np.float64) @ count > 2**62:
            raise InputError("tokens and counts are too large: their products must add up to at most 2^62")
        object.__setattr__(self, "tokens", checks.read_only(length))
        object.__setattr__(self, "counts", checks.read_only(count))

    @classmethod
    def of(cls, lengths: "ArrayLike | LengthDistribution", name: str = "prompt_tokens") -> "LengthDistribution":
        """The histogram of observed lengths, shape (n,); a histogram is returned as it is."""
        if isinstance(lengths, LengthDistribution):
            return lengths
        observed = checks.tokens(lengths, name)
        if observed.max() <= 4 * observed.size + 65_536:
            counts = np.bincount(observed)  # a sort is ten times slower, but needs no memory for the gaps
            present = np.flatnonzero(counts)
            return cls._of(present, counts[present])
        return cls._of(*np.unique(observed, return_counts=True))

    @classmethod
    def _of(cls, tokens: Ints, counts: Ints) -> "LengthDistribution":
        new = object.__new__(cls)
        object.__setattr__(new, "tokens", checks.read_only(tokens, copy=False))
        object.__setattr__(new, "counts", checks.read_only(counts, copy=False))
        return new

    @property
    def mean(self) -> float:
        """Mean length in tokens, `E[l]`."""
        return float(self.tokens @ self.counts / self.counts.sum())

    def sample(self, n: int, rng: np.random.Generator) -> Ints:
        """n independent lengths, shape (n,)."""
        size = checks.count(n, "n")
        return checks.generator(rng).choice(self.tokens, size=size, p=self.counts / self.counts.sum())


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests: arrival in seconds, prompt and output length in tokens (at least 1), each of shape (n,).

    Arrivals may come in any order. Arrays are not copied, so do not change yours afterwards.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "arrival_s", checks.read_only(checks.seconds(self.arrival_s, "arrival_s"), copy=False)
        )
        for name in ("prompt_tokens", "output_tokens"):
            object.__setattr__(self, name, checks.read_only(checks.tokens(getattr(self, name), name), copy=False))
        if not self.arrival_s.shape == self.prompt_tokens.shape == self.output_tokens.shape:
            raise InputError(
                "arrival_s, prompt_tokens and output_tokens must have one entry per request, got "
                f"{self.arrival_s.size}, {self.prompt_tokens.size} and {self.output_tokens.size}"
            )

    def __len__(self) -> int:
        return self.prompt_tokens.size

    @classmethod
    def sample(
        cls,
        n: int,
        prompt: LengthDistribution,
        output: LengthDistribution,
        rng: np.random.Generator,
        rate: float = 1.0,
    ) -> "Workload":
        """n requests of independent lengths, arriving as a Poisson process of `rate` requests per second."""
        for name, lengths in (("prompt", prompt), ("output", output)):
            checks.instance_of(lengths, LengthDistribution, name)
        gaps = checks.generator(rng).exponential(1.0 / checks.positive(rate, "rate"), checks.count(n, "n"))
        arrival_s = np.cumsum(gaps)
        return cls(arrival_s, prompt.sample(n, rng), output.sample(n, rng))
