"""An endpoint behind an emulated network: its tokens arrive as late, and in such bursts, as from a public service."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from disco_core import checks
from disco_core.endpoints.base import (
    Endpoint,
    Prefix,
    Prompt,
    Token,
    apply_chat_template,
    checked,
    non_negative_int,
    sleep_until,
    wait_stopped,
)
from disco_core.errors import CutError
from disco_core.latency import TTFTDistribution

Arrival = tuple[float, Token | None, BaseException | None]  # its time; a token, or the exception that ends them


@dataclass
class _Held:
    """Number of tokens of a generation that are generated and have not arrived."""

    tokens: int = 0


class LastHop:
    """One request to an endpoint with an emulated network delay: TTFT is the larger of X and the endpoint's TTFT.

    The first token is delayed until X seconds after the request, and all later tokens by the same time, so that their
    gaps are those of the endpoint. X is drawn from `ttft` by (seed, request): the same for every policy, and another
    draw for a hand-over within the request, at whatever time.

    request   number of the request, from 0; create one LastHop for each
    bursts    sizes of the groups in which tokens arrive after the first, one drawn at random each time; None: singly

    Times measured through it are emulated, and `name` says so.
    """

    emulated = True

    def __init__(
        self,
        endpoint: Endpoint,
        ttft: TTFTDistribution,
        seed: int,
        request: int = 0,
        bursts: Sequence[int] | None = None,
    ) -> None:
        self.endpoint, self.ttft = checked(endpoint, "endpoint"), checks.instance_of(ttft, TTFTDistribution, "ttft")
        self.seed, self.request = non_negative_int(seed, "seed"), non_negative_int(request, "request")
        self.bursts = None if bursts is None else checks.tokens(bursts, "bursts")
        self.name = f"{endpoint.name} (emulated last hop)"
        self.vocabulary, self.context, self.continues = endpoint.vocabulary, endpoint.context, endpoint.continues
        self._held: WeakKeyDictionary[AsyncGenerator[Token, None], _Held] = WeakKeyDictionary()

    def held_s(self, *, takeover: bool = False) -> float:
        """X in seconds: of this request, or of a hand-over within it."""
        return float(self.ttft.sample(1, self._draws(takeover))[0])

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt in the endpoint's tokenizer."""
        return self.endpoint.count(prompt)

    def built(self, prompt: Prompt) -> Prompt:
        """The prompt in the endpoint's chat template."""
        return apply_chat_template(self.endpoint, prompt)

    def generate(self, prefix: Prefix) -> AsyncGenerator[Token, None]:
        """The endpoint's tokens at their time of arrival."""
        held = _Held()
        tokens = self._arriving(prefix, held)
        self._held[tokens] = held
        return tokens

    def ahead(self, tokens: AsyncGenerator[Token, None]) -> int:
        """Number of tokens that are generated and have not arrived, for a generator that `generate` returned."""
        return self._held[tokens].tokens

    async def _arriving(self, prefix: Prefix, held: _Held) -> AsyncGenerator[Token, None]:
        arrives = asyncio.get_running_loop().time() + self.held_s(takeover=bool(prefix.generated))
        arrived: asyncio.Queue[Arrival] = asyncio.Queue()
        carrier = asyncio.create_task(self._carry(prefix, arrives, arrived, held))
        try:
            while True:
                when, token, end = await arrived.get()
                await sleep_until(when)
                if isinstance(end, StopAsyncIteration):
                    return
                if end is not None:
                    raise end
                held.tokens -= 1
                yield token  # type: ignore[misc]  # None if the endpoint yields it; the caller judges that
        finally:
            carrier.cancel()
            await wait_stopped(carrier)  # raises if the endpoint did not confirm its end

    async def _carry(self, prefix: Prefix, arrives: float, arrived: "asyncio.Queue[Arrival]", held: _Held) -> None:
        """Queue the endpoint's tokens with their arrival times; a failure before the first token arrives at once."""
        loop, late = asyncio.get_running_loop(), 0.0
        sizes = self._sizes(takeover=bool(prefix.generated))
        wanted, bundle, first = next(sizes), list[Token](), True
        end: BaseException = StopAsyncIteration()
        try:
            async with aclosing(self.endpoint.generate(prefix)) as tokens:
                async for token in tokens:
                    held.tokens += 1
                    now = loop.time()
                    when = max(now, arrives) if first else now + late
                    late, first = when - now, False
                    bundle.append(token)
                    if len(bundle) == wanted:
                        for one in bundle:
                            arrived.put_nowait((when, one, None))
                        wanted, bundle = next(sizes), []
        except BaseException as failure:
            task = asyncio.current_task()
            if (task and task.cancelling()) or isinstance(failure, KeyboardInterrupt | SystemExit):
                raise
            cancelled = isinstance(failure, asyncio.CancelledError)
            end = CutError(self.name, "it was cancelled") if cancelled else failure
        for one in bundle:
            arrived.put_nowait((loop.time() + late, one, None))
        arrived.put_nowait((loop.time() + late, None, end))

    def _draws(self, takeover: bool) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.request, int(takeover)])

    def _sizes(self, takeover: bool) -> Iterator[int]:
        draws = self._draws(takeover).spawn(1)[0]
        yield 1  # the first token arrives alone
        while True:
            yield 1 if self.bursts is None else int(draws.choice(self.bursts))
