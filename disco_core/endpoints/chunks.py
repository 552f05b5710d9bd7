"""The tokens in the chunks of OpenAI's API, of which every field may be missing, null or of another shape."""

import asyncio
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from disco_core.endpoints.base import Prefix, Token
from disco_core.endpoints.events import FILTER, Characters, as_dict, error_words, normal, token_count
from disco_core.endpoints.http import LINGER_S, Remote, RemoteAnswer, Request
from disco_core.endpoints.seam import Seam
from disco_core.errors import CutError, EndpointError, FilteredError

# Why an answer ended, in letters and digits alone: it is complete, or the limit on tokens was reached. Servers make
# their words out of these parts, such as `stop_sequence` or `max_tokens`; any other part says that it is neither.
COMPLETE = re.compile(
    "(stop|stopped|end|ended|eos|eot|eom|done|finish|finished|complete|completed|completion|success|normal|natural"
    "|hit|matched|reached|by|of|model|turn|text|im|message|sequence|string|str|token|word|words|id)+|s"
)
LIMIT = re.compile(
    "(max|maximum|new|output|completion|context|model|window|tokens?|length|limit|exceeded|reached|stopped|by)+"
)
ENDED, LIMITED, UNKNOWN, FILTERED = range(4)  # how an answer ended; of several reasons the worst is believed
UNFINISHED = {"", "none", "null", "unspecified", "inprogress", "notfinished"}
TEXTS = ("text", "thinking", "reasoning", "content", "summary", "refusal", "value")  # where a part has its text


def parts(value: Any, reasoning: bool = False) -> Iterator[tuple[str, bool]]:
    """The texts in a content of any shape, each with whether it is reasoning."""
    if (isinstance(value, str) and value) or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield str(value), reasoning
    elif isinstance(value, list):
        for one in value:
            yield from parts(one, reasoning)
    elif isinstance(value, dict):
        kind = normal(value.get("type") or "text")
        if any(known in kind for known in ("text", "think", "reason", "refusal")):
            text = first(value.get(key) for key in TEXTS)
            yield from parts(text, reasoning or "think" in kind or "reason" in kind)


def first(values: Iterable[Any]) -> Any:
    """The first value that has a content, which the number 0 is; None if there is none."""
    return next((value for value in values if value or (value == 0 and value is not False)), None)


def severity(reason: str) -> int:
    """How an answer with a finish reason ended, as one of `ENDED` to `FILTERED`; also "" is no bad one."""
    if FILTER.search(reason):
        return FILTERED
    if not reason or COMPLETE.fullmatch(reason):
        return ENDED
    return LIMITED if LIMIT.fullmatch(reason) else UNKNOWN


class ChunkedAnswer(RemoteAnswer):
    """An answer out of chunks, of chat completions or of raw ones.

    usage    gets what a complete answer was billed
    billed   (prompt, completion) tokens as the server billed them; None where it did not say
    seam     between the text it continues and its own; `echoes`: whether the server repeats the former, if known
    """

    def __init__(
        self,
        endpoint: Remote,
        path: str,
        request: Request,
        prefix: Prefix,
        usage: list[tuple[int, int]],
        echoes: bool | None,
    ) -> None:
        super().__init__(endpoint, path, request, prefix)
        self.name, self.index, self._usage = endpoint.name, len(prefix.generated), usage
        self.end = self.index + prefix.max_tokens
        self.billed: tuple[int, int] | None = None
        self._reason, self._word, self._reported_reasoning = "", "", 0
        self._shown = self._reasoned = 0  # tokens that came as text of the answer, and of reasoning
        self._counts_tokens = False  # whether the server lists the tokens of a piece
        self.seam = Seam(endpoint.name, "".join(token.text for token in prefix.generated), echoes)
        self._characters, self._thoughts = Characters(), Characters()

    async def aclose(self) -> None:
        """Cancel; where all tokens that were asked for have come, only once the server has said what it bills."""
        if self.index == self.end:
            with suppress(StopAsyncIteration, EndpointError, TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await anext(self._tokens)
        await super().aclose()

    async def read(self, event: dict[str, Any]) -> list[Token]:
        """The tokens in a chunk; none in one with only a role, a usage or a filter's result."""
        self._bill(event.get("usage") or as_dict(event.get("x_groq")).get("usage"))
        choices, before = event.get("choices"), self._shown + self._reasoned
        # one answer was asked for: where the index of a choice changes, it counts tokens or parts of the answer
        choice = next(filter(None, map(as_dict, choices if isinstance(choices, list) else [choices])), {})
        delta = as_dict(choice.get("delta"))
        if not delta and not self._shown:
            delta = as_dict(choice.get("message"))  # by a server that does not stream
        tokens = self._read(choice, delta)
        self._bill(choice.get("usage"))
        self.repeating = self.repeating or (bool(self._reason) and self._shown + self._reasoned > before)
        reason = choice.get("finish_reason") or choice.get("finishReason") or delta.get("finish_reason")
        told = str(as_dict(reason).get("type", reason))
        word = normal(told)
        if reason and word not in UNFINISHED and severity(word) >= severity(self._reason):
            self._reason = word
            self._word = self.endpoint.failures.quote(": ".join(filter(None, [told, error_words(as_dict(reason))])))
        self.done = bool(self._reason) and not self.repeating
        self.made = max(self._shown + self._reasoned, self.billed[1] if self.billed else 0)
        return tokens

    def finish(self) -> list[Token]:
        """Half a character and the pieces still held back; an error unless the answer is complete."""
        how = severity(self._reason)
        if how == FILTERED:
            raise FilteredError(self.name, f"its content filter stopped the answer: {self._word}")
        if how == UNKNOWN:
            raise CutError(self.name, f"it stopped early: {self._word}")
        if how == LIMITED:
            self._check_limit()
        self._usage += [self.billed] if self.billed else []
        return self._thought("", last=True) + self._seamless(self._characters.join("", last=True), last=True)

    def _check_limit(self) -> None:
        """CutError unless the tokens that were asked for have come, as far as is known."""
        made = self._shown
        if self.billed:
            made = max(made, self.billed[1] - max(self._reasoned, self._reported_reasoning))
        known = self.billed or self._counts_tokens or self._reasoned or not self._shown
        if known and made < self.prefix.max_tokens:
            raise CutError(self.name, f"it stopped after {made} of {self.prefix.max_tokens} tokens: {self._word}")

    def _bill(self, usage: Any) -> None:
        """What a usage says; what Gemini and xAI leave out of the completion, but not of the total, is reasoning."""
        if not (usage := as_dict(usage)):
            return
        prompt, completion = token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens"))
        details = as_dict(usage.get("completion_tokens_details"))
        reasoning = token_count(details.get("reasoning_tokens")) or token_count(usage.get("reasoning_tokens")) or 0
        if completion is not None:
            total = token_count(usage.get("total_tokens")) or 0
            hidden = max(0, total - prompt - completion) if prompt is not None else 0
            billed, reasoning = (prompt or 0, completion + hidden), max(reasoning, hidden)
            self.billed = billed if any(billed) else self.billed or billed  # some servers end with zeros alone
        self._reported_reasoning = reasoning or self._reported_reasoning

    def _read(self, choice: dict[str, Any], delta: dict[str, Any]) -> list[Token]:
        """The tokens of reasoning and of the answer in one choice."""
        thought = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
        reasoning = first(delta.get(key) for key in thought)
        content = first([delta.get("content"), delta.get("text"), choice.get("text"), delta.get("refusal")])
        tokens, listed = list[Token](), self._listed(choice)
        for text, reasons in [*((text, True) for text, _ in parts(reasoning)), *parts(content)]:
            if reasons:
                self._reasoned += 1
                tokens += self._thought(text)
            else:
                self._shown += len(listed) or 1
                for piece in filter(None, listed if "".join(listed) == text else [text]):
                    tokens += self._seamless(self._characters.join(piece))
        return tokens

    def _thought(self, text: str, last: bool = False) -> list[Token]:
        text = self._thoughts.join(text, last)
        return [Token(self.index, text, reasoning=True)] if text else []

    def _listed(self, choice: dict[str, Any]) -> list[str]:
        """The texts of a chunk's tokens, where its logprobs list them."""
        logprobs = as_dict(choice.get("logprobs"))
        listed = logprobs.get("content") or logprobs.get("tokens")
        listed = [as_dict(one).get("token", one) for one in listed] if isinstance(listed, list) else []
        self._counts_tokens = self._counts_tokens or bool(listed)
        return [one if isinstance(one, str) else "" for one in listed]

    def _seamless(self, text: str, last: bool = False) -> list[Token]:
        """Tokens of a text that follows, without an echo of the text before it."""
        pieces = self.seam.join(text, last)
        self.index += len(pieces)
        return [Token(self.index - len(pieces) + i, piece) for i, piece in enumerate(pieces)]
