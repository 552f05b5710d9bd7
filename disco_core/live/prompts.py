"""The prompt that each endpoint gets, and its length by that endpoint's own count."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from disco_core.cost import End
from disco_core.endpoints.base import (
    Endpoint,
    Estimate,
    Prompt,
    Token,
    checked_prompt,
    copy_prompt,
    estimate,
    is_chat,
)
from disco_core.errors import InputError
from disco_core.migration import Rule
from disco_core.record import Record

COUNT_S = 0.25  # seconds that a stream waits for a server's count before it plans with an estimate


class Prompts:
    """Builds and counts prompts; each is done once, and what a server does is asked for in a thread.

    Whatever fails here is no reason to end the answer: the prompt stays as given, the count becomes an estimate, and
    the record's warnings say so.
    """

    def __init__(self, prompt: Prompt, endpoints: Sequence[Endpoint], rule: Rule | None, record: Record) -> None:
        self.prompt, self.endpoints, self.rule, self.record = prompt, endpoints, rule, record
        self.unbuilt: dict[End, str] = {}  # why an endpoint has no prompt of its own, and so never is a target
        self._given: dict[End, int] = {}  # tokens of the prompt as given
        self._wanted: dict[End, Prompt] = {}
        self._known: dict[End, tuple[Prompt, int]] = {}
        self._asking: dict[End, asyncio.Future[tuple[Prompt, int]]] = {}

    def check(self, end: End) -> None:
        """InputError, before anything starts, for an endpoint in this process that cannot count the prompt."""
        endpoint = self.endpoints[end]
        if endpoint.remote:
            return
        try:
            counted = endpoint.count(self.prompt)
        except Exception as error:  # a user's function
            raise InputError(f"{endpoint.name}: count failed: {describe(error)}") from error
        if isinstance(counted, bool) or not hasattr(counted, "__index__") or counted < 1:
            raise InputError(f"{endpoint.name}: count must be a whole number of at least 1, got {counted!r:.80}")
        self._given[end] = int(counted)

    def now(self, end: End) -> int:
        """Tokens of the prompt as given, by the count of an endpoint in this process."""
        return self._given[end]

    async def tokens(self, end: End) -> int:
        """Tokens of the prompt as given, by a server's count; an estimate if that takes longer than `COUNT_S`."""
        counting = asyncio.ensure_future(asyncio.to_thread(self._counted, end, self.prompt))
        done, _ = await asyncio.wait([counting], timeout=COUNT_S)
        if done:
            return counting.result()
        self.warn(f"{self.endpoints[end].name}: the prompt's tokens are estimated")
        return max(1, estimate(self.prompt))

    def of(self, end: End) -> tuple[Prompt, int]:
        """The prompt for an endpoint, by rule and chat template, and its tokens: as far as they are known by now."""
        known = self._known.get(end)
        if known is None:
            wanted = self._by_rule(end)
            if not self.endpoints[end].remote:
                known = self._known[end] = self._build(end, wanted)
            elif end not in self._asking:
                self._asking[end] = asking = asyncio.ensure_future(asyncio.to_thread(self._build, end, wanted))
                asking.add_done_callback(lambda done: done.cancelled() or self._known.setdefault(end, done.result()))
        return known or (wanted, max(1, estimate(wanted)))

    def is_estimate(self, end: End, generated: Sequence[Token]) -> bool:
        """Whether `prefix_tokens` can only be estimated for now, since a server has to be asked."""
        as_text = any(token.id is None for token in generated)
        return self.endpoints[end].remote and (end not in self._known or as_text)

    def prefix_tokens(self, end: End, generated: Sequence[Token], *, ask: bool = False) -> int:
        """Tokens an endpoint prefills for its prompt and the generated tokens; `ask`: also where that blocks."""
        if ask and end not in self._known:
            self._known[end] = self._build(end, self._wanted[end])
        prompt, tokens = self.of(end)
        if all(token.id is not None for token in generated):
            return tokens + len(generated)
        text = "".join(token.text for token in generated)
        if self.endpoints[end].remote and not ask:
            return tokens + estimate(text)
        before = prompt if isinstance(prompt, str) else ""  # tokenised as one text, with one BOS
        return tokens + max(0, self._counted(end, before + text) - self._counted(end, before))

    def generated_for(self, end: End, generated: Sequence[Token]) -> tuple[Token, ...]:
        """The generated tokens as an endpoint takes them: ids are valid within one vocabulary only."""
        vocabulary = self.endpoints[end].vocabulary
        return tuple(
            token if vocabulary and self.endpoints[made.source].vocabulary == vocabulary else replace(token, id=None)
            for token, made in zip(generated, self.record.tokens, strict=True)
        )

    def splits_text(self, target: End) -> bool:
        """Whether the target would get text that is cut after white space, which servers strip or repeat."""
        vocabulary, tokens = self.endpoints[target].vocabulary, self.record.tokens
        if not tokens or not tokens[-1].text[-1:].isspace():
            return False
        return not vocabulary or any(
            self.endpoints[end].vocabulary != vocabulary for end in {t.source for t in tokens}
        )

    def refusal(self, target: End, max_tokens: int) -> str | None:
        """Why an endpoint cannot continue the answer; None if it can."""
        endpoint = self.endpoints[target]
        if self.record.tokens and not endpoint.continues:
            return f"{endpoint.name} cannot continue an open assistant turn"
        needed = self.of(target)[1] + max_tokens
        if target in self.unbuilt:
            return self.unbuilt[target]
        if endpoint.context is not None and needed > endpoint.context:
            return f"{endpoint.name}: prompt and answer need {needed} tokens of context, it has {endpoint.context}"
        return None

    def warn(self, text: str) -> None:
        """Note a warning once."""
        if text not in self.record.warnings:
            self.record.warnings.append(text)

    def close(self) -> None:
        """Wait for no server any more."""
        for asking in self._asking.values():
            asking.cancel()

    def _by_rule(self, end: End) -> Prompt:
        if end not in self._wanted:
            wanted = self.prompt
            if self.rule is not None and type(self.rule).prompt_for is not Rule.prompt_for:
                try:
                    wanted = checked_prompt(self.rule.prompt_for(end, copy_prompt(self.prompt)))
                except Exception as error:  # a user's function
                    self._failed(end, error)
            self._wanted[end] = wanted
        return self._wanted[end]

    def _build(self, end: End, wanted: Prompt) -> tuple[Prompt, int]:
        prompt, endpoint = wanted, self.endpoints[end]
        if is_chat(wanted) and end not in self.unbuilt:
            try:
                prompt = endpoint.apply_chat_template(wanted)
            except Exception as error:
                self._failed(end, error)
        alike = prompt == self.prompt and end in self._given
        return prompt, self._given[end] if alike else self._counted(end, prompt)

    def _failed(self, end: End, error: Exception) -> None:
        self.unbuilt[end] = f"no prompt could be made for {self.endpoints[end].name}: {describe(error)}"

    def _counted(self, end: End, prompt: Prompt) -> int:
        endpoint = self.endpoints[end]
        try:
            counted = endpoint.count(prompt)
            if not 0 <= counted < math.inf or counted != int(counted):
                raise ValueError(f"{counted!r} is no number of tokens")
            if isinstance(counted, Estimate):
                self.warn(f"{endpoint.name}: the prompt's tokens are estimated")
            return int(counted)
        except Exception as error:  # a user's function
            self.warn(f"{endpoint.name} cannot count tokens: {describe(error)}")
            return estimate(prompt)


def describe(error: BaseException) -> str:
    """An exception in one line, by its type alone where its own text cannot be had."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
