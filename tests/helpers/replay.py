"""An endpoint that replays a timeline: the tokens are the integers 0, 1, 2, ..., so that a lost one is noticed."""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from disco_core import checks
from disco_core.endpoints.base import Endpoint, Generation, Prefix, Prompt, Token, is_chat, non_negative_int, words
from disco_core.errors import CutError, ProtocolError, RefusedError


class Failure(Enum):
    """How a replayed endpoint fails; `at` says at which of its tokens, counted from 0 in the complete answer."""

    REFUSE = "takes no connection"
    RATE_LIMIT = "429 with Retry-After"
    DIE_BEFORE_FIRST = "dies when its first token is due"
    DIE = "dies in place of token `at`"
    STALL = "sends nothing from token `at` on"
    DUPLICATE = "sends token `at` twice"
    CUT = "ends without a finish reason in place of token `at`"
    MALFORMED = "sends an event nobody can read in place of token `at`"
    SLOW_CANCEL = "takes its time to confirm a cancel"


@dataclass(eq=False)
class ReplayEndpoint(Endpoint):
    """Timed tokens from a trace or a profile: the first after `ttft_s`, then one after each of `token_gaps_s`.

    One endpoint replays one answer; another prompt is an AssertionError.

    ttft_s         seconds, or a function of the tokens it has to prefill (prompt and generated)
    token_gaps_s   seconds before the second, third, ... token of a piece of work; the last one repeats
    length         tokens of the whole answer
    context        tokens of prompt and answer that fit
    prefix_cache         whether a piece of work goes on from what those before it have read of the same prompt
    fail, at       what goes wrong and at which token; `cancel_s`, how long a slow cancel takes

    It checks the prefix it is given, and counts for itself: `prefilled` tokens it was started with, `made` tokens it
    sent, `running` pieces of work not yet confirmed as ended.
    """

    ttft_s: float | Callable[[int], float]
    token_gaps_s: Sequence[float]
    length: int
    fail: Failure | None = None
    at: int = 0
    cancel_s: float = 0.0
    name: str = "replay"
    vocabulary: str = "integers"
    context: int | None = None
    continues: bool = True
    prefix_cache: bool = False
    prefilled: int = field(default=0, init=False)
    made: int = field(default=0, init=False)
    running: int = field(default=0, init=False)
    seen: list[Prefix] = field(default_factory=list, init=False)
    _asked: int = field(default=0, init=False)
    _at: Prefix | None = field(default=None, init=False)  # what it works at
    _tokens: int = field(default=0, init=False)  # of the prefix it is at, or was last at
    _began_s: float = field(default=0.0, init=False)
    _took_s: float = field(default=0.0, init=False)
    _takes_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not callable(self.ttft_s):
            checks.number(self.ttft_s, "ttft_s")
        if non_negative_int(self.length, "length") > 1:
            checks.seconds(self.token_gaps_s, "token_gaps_s")
        if self.fail is not None:
            checks.instance_of(self.fail, Failure, "fail")
        non_negative_int(self.at, "at")
        checks.number(self.cancel_s, "cancel_s")

    def count(self, prompt: Prompt) -> int:
        """The prompt's length: every id is a token, and so is every character, of messages what they say."""
        return _length(prompt)

    def generate(self, prefix: Prefix) -> Generation:
        """Replay the timeline from where the prefix ends."""
        return Replay(self, self.tokens(prefix))

    async def tokens(self, prefix: Prefix) -> AsyncGenerator[Token, None]:
        """The tokens as an async generator, for tests that change what comes."""
        self._check(prefix)
        self.running += 1
        try:
            first = len(prefix.generated)
            tokens = _length(prefix.prompt) + first
            self.prefilled += tokens - self._asked * self.prefix_cache
            self._asked = tokens
            if self.fail in (Failure.REFUSE, Failure.RATE_LIMIT):
                raise RefusedError(self.name, self.fail.value)
            needed = tokens + prefix.max_tokens
            if self.context is not None and needed > self.context:
                raise RefusedError(
                    self.name, f"prompt and answer need {needed} tokens of context, it has {self.context}"
                )
            await asyncio.sleep(self._reads(prefix, tokens))
            if self.fail is Failure.DIE_BEFORE_FIRST:
                raise CutError(self.name, self.fail.value)
            for index in range(first, min(self.length, first + prefix.max_tokens)):
                if index > first:
                    await asyncio.sleep(self.token_gaps_s[min(index - first, len(self.token_gaps_s)) - 1])
                if index == self.at:
                    await self._go_wrong()
                for _ in range(2 if self.fail is Failure.DUPLICATE and index == self.at else 1):
                    self.made += 1
                    yield Token(index, f" {index}", index)
        except (asyncio.CancelledError, GeneratorExit):
            self._reads_no_more(prefix)
            if self.fail is Failure.SLOW_CANCEL:
                await asyncio.sleep(self.cancel_s)
            raise
        finally:
            self._reads_no_more(prefix)
            self.running -= 1

    def read(self) -> int | None:
        """Tokens that it has read of the prefix it is at, or was last at."""
        reads_s = self.ttft_s if callable(self.ttft_s) else lambda _: self._takes_s
        return bisect_right(range(1, self._tokens + 1), self._spent_s(), key=reads_s)

    def _reads(self, prefix: Prefix, tokens: int) -> float:
        """Seconds until it has read a prefix of so many tokens, beginning now."""
        self._took_s = self._spent_s() if self.prefix_cache else 0.0
        self._takes_s = self.ttft_s(tokens) if callable(self.ttft_s) else self.ttft_s
        self._at, self._began_s, self._tokens = prefix, asyncio.get_running_loop().time(), tokens
        return max(0.0, self._takes_s - self._took_s)

    def _reads_no_more(self, prefix: Prefix) -> None:
        if self._at is prefix:  # the next piece of work may have begun
            self._took_s, self._at = self._spent_s(), None

    def _spent_s(self) -> float:
        """Seconds it has read so far, pieces of work before this one included."""
        now = asyncio.get_running_loop().time()
        return min(self._takes_s, self._took_s + (now - self._began_s if self._at else 0.0))

    async def _go_wrong(self) -> None:
        if self.fail is Failure.STALL:
            await asyncio.get_running_loop().create_future()
        if self.fail in (Failure.DIE, Failure.CUT):
            raise CutError(self.name, self.fail.value)
        if self.fail is Failure.MALFORMED:
            raise ProtocolError(self.name, self.fail.value)

    def _check(self, prefix: Prefix) -> None:
        """A prefix is the prompt, every token so far and the budget that is left: nothing else, nothing less."""
        generated = [token.index for token in prefix.generated]
        assert generated == list(range(len(generated))), f"{self.name} was given {generated}"
        assert all(token.id in (None, token.index) for token in prefix.generated)
        if self.seen:
            earlier = self.seen[0]
            total = earlier.max_tokens + len(earlier.generated)
            assert prefix.max_tokens + len(generated) == total, f"{self.name}: {prefix.max_tokens} tokens left?"
            assert prefix.prompt == earlier.prompt, f"{self.name} was given another prompt"
        assert prefix.max_tokens >= 1
        self.seen.append(prefix)


def _length(prompt: Prompt) -> int:
    return len(words(prompt) if is_chat(prompt) else prompt)


class Replay(Generation):
    """A generation that knows how far its endpoint has read."""

    def __init__(self, endpoint: ReplayEndpoint, tokens: AsyncGenerator[Token, None]) -> None:
        super().__init__(tokens)
        self._endpoint = endpoint

    @property
    def prefilled(self) -> int | None:  # type: ignore[override]
        return self._endpoint.read()
