"""Stop texts: where a text ends an answer, also across the borders of tokens and of endpoints."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from disco_core import checks
from disco_core.endpoints.base import Generation, Prefix, Token
from disco_core.errors import EndpointError, InputError


def stop_texts(value: Any, name: str) -> tuple[str, ...]:
    """The texts as a tuple: from one text, several, or None; InputError otherwise."""
    texts = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"{name} must be a text or several, none of them empty, got {value!r:.80}")
    return tuple(texts)


def sampling(name: str, temperature: Any, top_p: Any) -> tuple[float, float | None]:
    """Temperature and top_p of an endpoint, if they can be; InputError otherwise."""
    share = None if top_p is None else checks.number(top_p, f"{name}: top_p", 0.0, 1.0, above=True)
    return checks.number(temperature, f"{name}: temperature"), share


class Answer(Generation):
    """A generation that ends before the first stop text, and knows how many tokens it generated.

    made   tokens generated, also those that are not yielded
    """

    made = 0

    def __init__(self, tokens: AsyncGenerator[Token, None], prefix: Prefix, stop: Sequence[str]) -> None:
        self._held = _Held(stop, "".join(token.text for token in prefix.generated))
        super().__init__(_until_stop(tokens, self._held))
        self._yielded = 0

    async def __anext__(self) -> Token:
        token = await anext(self._tokens)
        self._yielded += 1
        return token

    @property
    def ended(self) -> bool:  # type: ignore[override]
        """Whether no further token is being generated: a stop text was found."""
        return self._held.found

    @property
    def undelivered(self) -> int:  # type: ignore[override]
        """Tokens generated beyond those that were yielded."""
        return max(0, self.made - self._yielded)


async def _until_stop(tokens: AsyncGenerator[Token, None], held: "_Held") -> AsyncGenerator[Token, None]:
    """The tokens before a stop text, which may begin in the text before them; then the generation is cancelled."""
    try:
        async for token in tokens:
            if not held.stop or token.reasoning:
                yield token
                continue
            for one in held.add(token):
                yield one
            if held.found:
                return
        for one in held.tokens:
            yield one
    finally:
        with suppress(*([EndpointError] if held.found else [])):  # the answer is complete, also if the cancel fails
            await tokens.aclose()


class _Held:
    """Tokens that are held back while a stop text may have begun in them, until one is found."""

    def __init__(self, stop: Sequence[str], before: str) -> None:
        self.stop, self.tokens, self.found = stop, list[Token](), False
        self._longest = max(map(len, stop), default=1) - 1  # characters of a stop text that may be in the text before
        self._before = before[len(before) - min(len(before), self._longest) :]

    def add(self, token: Token) -> list[Token]:
        """The tokens that are ready; if a stop text was found, they are those before it."""
        self.tokens.append(token)
        n, text = len(self._before), self._before + "".join(one.text for one in self.tokens)
        ends = [at for stop in self.stop if (at := text.find(stop, max(0, n + 1 - len(stop)))) >= 0]
        begun = (i for i in range(max(0, len(text) - self._longest), len(text)))
        sure = next((i for i in begun if any(stop.startswith(text[i:]) for stop in self.stop)), len(text))
        end, ready = min(ends, default=sure), list[Token]()
        while self.tokens and n + len(self.tokens[0].text) <= end:
            ready.append(self.tokens.pop(0))
            n += len(ready[-1].text)
        if ends and n < end:  # the stop text begins within this token, which then has no id
            ready.append(replace(self.tokens[0], text=text[n:end], id=None))
        self._before = text[max(0, n - self._longest) : n]
        self.found = bool(ends)
        return ready
