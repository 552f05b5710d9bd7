"""Prompts of a wanted length: the artifact's prompts one after the other, each from another place on."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from artifact.data import traces
from artifact.measure.record import Ask
from disco_core.endpoints.base import Endpoint, Prompt

_TRIES = 12  # counts of a prompt until its length is accepted as it is


class Texts:
    """User messages of a wanted length for an endpoint.

    Each message begins with other words, so that a prefix cache holds the chat template and a word or two.

    build   the prompt of a message's text; by default the endpoint's own chat template
    """

    def __init__(
        self, endpoint: Endpoint, rng: np.random.Generator, build: Callable[[str], Prompt] | None = None
    ) -> None:
        self.endpoint, self.rng, self.build = endpoint, rng, build or self._template
        self.words = " ".join(str(text) for text in traces.table("prompts")["prompt"]).split()
        self._turn()
        self.shortest = self._ask(1)[1]  # tokens of a prompt of one word, about

    async def asks(self, prompt_tokens: Iterable[int], max_tokens: Sequence[int]) -> list[Ask]:
        """One request for each length, counted in a thread, since an endpoint may ask its server."""
        pairs = list(zip(map(int, prompt_tokens), map(int, max_tokens), strict=True))
        return await asyncio.to_thread(lambda: [self.ask(length, most) for length, most in pairs])

    def ask(self, prompt_tokens: int, max_tokens: int) -> Ask:
        """A request of about so many tokens, chat template included, never more unless one word has more."""
        self._turn()
        low, high, best = 1, max(2, 2 * prompt_tokens), self._ask(1)
        guess = max(1, round(0.75 * (prompt_tokens - best[1])))  # words; the next guess goes by what came out
        for _ in range(_TRIES):
            found = self._ask(guess)
            if found[1] <= prompt_tokens:
                low, best = guess, found
            else:
                high = guess
            if found[1] == prompt_tokens or high - low <= 1:
                break
            step = round((prompt_tokens - found[1]) * 0.75) or (1 if found[1] < prompt_tokens else -1)
            guess = min(max(guess + step, low + 1), high - 1)
        return Ask(best[0], best[1], max_tokens)

    def _turn(self) -> None:
        """Begin somewhere else: the words from a random one on, the first with a random one before it."""
        at = int(self.rng.integers(len(self.words)))
        self.rotated = [str(self.rng.choice(self.words)).capitalize(), *self.words[at:], *self.words[:at]]

    def _ask(self, n: int) -> tuple[Prompt, int]:
        """A prompt of n words, as the endpoint gets it, and its tokens."""
        repeats = -(-n // len(self.rotated))
        prompt = self.build(" ".join((self.rotated * repeats)[:n]))
        return prompt, int(self.endpoint.count(prompt))

    def _template(self, text: str) -> Prompt:
        return self.endpoint.apply_chat_template([{"role": "user", "content": text}])
