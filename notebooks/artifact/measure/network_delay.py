"""An endpoint behind an emulated network: its tokens arrive as late, and in such bursts, as from a public service."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

import numpy as np

from disco_core import checks
from disco_core.endpoints.base import (
    Endpoint,
    Generation,
    Prefix,
    Prompt,
    Token,
    checked,
    non_negative_int,
    sleep_until,
    wait_stopped,
)
from disco_core.errors import CutError
from disco_core.latency import TTFTDistribution

Arrival = tuple[float, Token | None, BaseException | None]  # its time; a token, or the exception that ends them


class Wrapped(Endpoint):
    """An endpoint in front of another, with the same fields, counts and chat template."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.name, self.vocabulary = endpoint, endpoint.name, endpoint.vocabulary
        self.context, self.continues, self.remote = endpoint.context, endpoint.continues, endpoint.remote

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt in the endpoint's tokenizer."""
        return self.endpoint.count(prompt)

    def apply_chat_template(self, prompt: Prompt) -> Prompt:
        """The prompt in the endpoint's chat template."""
        return self.endpoint.apply_chat_template(prompt)


class LastHop(Wrapped):
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
        super().__init__(checked(endpoint, "endpoint"))
        self.ttft = checks.instance_of(ttft, TTFTDistribution, "ttft")
        self.seed, self.request = non_negative_int(seed, "seed"), non_negative_int(request, "request")
        self.bursts = None if bursts is None else checks.tokens(bursts, "bursts")
        self.name = f"{endpoint.name} (emulated last hop)"

    def held_s(self, *, takeover: bool = False) -> float:
        """X in seconds: of this request, or of a hand-over within it."""
        return float(self.ttft.sample(1, self._draws(takeover))[0])

    def generate(self, prefix: Prefix) -> Generation:
        """The endpoint's tokens at their time of arrival."""
        return _Arriving(self, prefix)

    def _draws(self, takeover: bool) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.request, int(takeover)])

    def sizes(self, *, takeover: bool = False) -> Iterator[int]:
        """Sizes of the groups in which tokens arrive."""
        draws = self._draws(takeover).spawn(1)[0]
        yield 1  # the first token arrives alone
        while True:
            yield 1 if self.bursts is None else int(draws.choice(self.bursts))


class _Arriving(Generation):
    """A generation whose tokens arrive late; `undelivered` counts those that are on their way."""

    def __init__(self, hop: LastHop, prefix: Prefix) -> None:
        super().__init__(self._arrivals())
        self._hop, self._prefix, self._on_their_way = hop, prefix, 0
        self._inner = hop.endpoint.generate(prefix)

    @property
    def prefilled(self) -> int | None:  # type: ignore[override]
        """Prefix tokens that the endpoint has prefilled."""
        return self._inner.prefilled

    @property
    def undelivered(self) -> int:  # type: ignore[override]
        """Tokens that are generated and have not arrived."""
        return self._on_their_way + self._inner.undelivered

    async def _arrivals(self) -> AsyncGenerator[Token, None]:
        takeover = bool(self._prefix.generated)
        arrives = asyncio.get_running_loop().time() + self._hop.held_s(takeover=takeover)
        arrived: asyncio.Queue[Arrival] = asyncio.Queue()
        carrier = asyncio.create_task(self._carry(arrives, self._hop.sizes(takeover=takeover), arrived))
        try:
            while True:
                when, token, end = await arrived.get()
                await sleep_until(when)
                if isinstance(end, StopAsyncIteration):
                    return
                if end is not None:
                    raise end
                self._on_their_way -= 1
                yield token  # type: ignore[misc]  # None if the endpoint yields it; the caller judges that
        finally:
            carrier.cancel()
            await wait_stopped(carrier)  # raises if the endpoint did not confirm its end

    async def _carry(self, arrives: float, sizes: Iterator[int], arrived: "asyncio.Queue[Arrival]") -> None:
        """Queue the endpoint's tokens with their arrival times; a failure before the first token arrives at once."""
        loop, late = asyncio.get_running_loop(), 0.0
        wanted, bundle, first = next(sizes), list[Token](), True
        end: BaseException = StopAsyncIteration()
        try:
            async with aclosing(self._inner) as tokens:
                async for token in tokens:
                    self._on_their_way += 1
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
            end = CutError(self._hop.name, "it was cancelled") if cancelled else failure
        for one in bundle:
            arrived.put_nowait((loop.time() + late, one, None))
        arrived.put_nowait((loop.time() + late, None, end))
