"""The prompt that each endpoint gets, and its length by that endpoint's own count."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from disco_core import checks
from disco_core.cost import End
from disco_core.dispatch import DispatchPlan
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


@dataclass
class Settings:
    """What a stream was asked for; see `stream`. Endpoints are in the order of `End`."""

    prompt: Prompt
    endpoints: tuple[Endpoint, Endpoint]
    plan: DispatchPlan
    rule: Rule
    max_tokens: int
    rng: np.random.Generator | None
    start_s: float | None
    reading_rate: float
    wait: bool
    stall_s: float
    confirm_s: float
    first_token_s: float | Callable[[int], float] | None
    after_filter: bool
    on_reasoning: Callable[[str, End], None] | None
    seed: int | None


class Prompts:
    """Builds and counts prompts; each is done once, and what a server does is asked for in a thread.

    Whatever fails in mid-answer is no reason to end it: the prompt stays as given, the count becomes an estimate, and
    the record's warnings say so. InputError, before anything starts, for ids that are not both endpoints', and for an
    endpoint in this process that cannot count the prompt.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.record = settings, Record()
        self.prompt, self.endpoints, self.rule = settings.prompt, settings.endpoints, settings.rule
        as_ids = not (isinstance(self.prompt, str) or is_chat(self.prompt))
        vocabularies = {endpoint.vocabulary for endpoint in self.endpoints}
        if as_ids and len(vocabularies) > 1 and type(self.rule).prompt_for is Rule.prompt_for:
            both = " and ".join(endpoint.name for endpoint in self.endpoints)
            raise InputError(f"prompt must be a text or messages where {both} have different vocabularies, got ids")
        self._given = {end: self._checked_count(end) for end in End if not self.endpoints[end].remote}
        self._prompts: dict[End, tuple[Prompt, int]] = {}  # by rule and chat template
        self._asking: dict[End, asyncio.Task[None]] = {}  # servers, for theirs
        self._unbuilt: dict[End, str] = {}  # why an endpoint has no prompt of its own, and so never is a target

    async def tokens(self, end: End) -> int:
        """Tokens of the prompt, for the plan; an estimate if a server takes longer than `COUNT_S` to count them."""
        if end in self._given:
            return self._given[end]
        self.of(end)
        done, _ = await asyncio.wait([self._asking[end]], timeout=COUNT_S)
        if not done:
            note(self.record.warnings, f"{self.endpoints[end].name}: the prompt's tokens are estimated")
        return max(1, self.of(end)[1])

    def of(self, end: End) -> tuple[Prompt, int]:
        """The prompt for an endpoint, by rule and chat template, and its tokens: as far as they are known by now."""
        if end not in self._prompts:
            wanted = self._by_rule(end)
            if self.endpoints[end].remote:
                self._prompts[end] = wanted, max(1, estimate(wanted))
                self._asking[end] = asyncio.create_task(self._ask(end, wanted))
            else:
                self._prompts[end] = self._build(end, wanted)
        return self._prompts[end]

    def prefix_tokens(self, end: End, generated: Sequence[Token], *, ask: bool = False) -> int:
        """Tokens an endpoint prefills for its prompt and the generated tokens; `ask`: a server, which blocks."""
        prompt, tokens = self.of(end)
        if all(token.id is not None for token in generated):
            return tokens + len(generated)
        text = "".join(token.text for token in generated)
        if self.endpoints[end].remote and not ask:
            return tokens + estimate(text)
        before = prompt if isinstance(prompt, str) else ""  # tokenised as one text, with one BOS
        return tokens + max(0, self._counted(end, before + text) - self._counted(end, before))

    async def exact_prefix_tokens(self, end: End, generated: Sequence[Token]) -> int:
        """`prefix_tokens` by a server's own count, once it has counted."""
        await asyncio.wait([self._asking[end]])
        return await asyncio.to_thread(self.prefix_tokens, end, generated, ask=True)

    def generated_for(self, end: End) -> tuple[Token, ...]:
        """The generated tokens as an endpoint takes them: ids are valid within one vocabulary only."""
        return tuple(
            Token(token.index, token.text, token.id if self._takes_ids(end, token.source) else None)
            for token in self.record.tokens
        )

    def splits_text(self, target: End) -> bool:
        """Whether the target would get text that is cut after white space, which servers strip or repeat."""
        tokens = self.record.tokens
        after_space = bool(tokens) and tokens[-1].text[-1:].isspace()
        return after_space and not all(self._takes_ids(target, token.source) for token in tokens)

    def refusal(self, target: End) -> str | None:
        """Why an endpoint cannot continue the answer; None if it can."""
        endpoint = self.endpoints[target]
        if self.record.tokens and not endpoint.continues:
            return f"{endpoint.name} cannot continue an open assistant turn"
        needed = self.of(target)[1] + self.settings.max_tokens
        if target in self._unbuilt:
            return self._unbuilt[target]
        if endpoint.context is not None and needed > endpoint.context:
            return f"{endpoint.name}: prompt and answer need {needed} tokens of context, it has {endpoint.context}"
        return None

    def close(self) -> None:
        """Stop waiting for servers."""
        for asking in self._asking.values():
            asking.cancel()

    def _checked_count(self, end: End) -> int:
        endpoint = self.endpoints[end]
        try:
            counted = endpoint.count(self.prompt)
        except Exception as error:  # a user's function
            raise InputError(f"{endpoint.name}: count failed: {describe(error)}") from error
        return checks.count(counted, f"{endpoint.name}: count")

    def _takes_ids(self, end: End, source: End) -> bool:
        vocabulary = self.endpoints[end].vocabulary
        return bool(vocabulary) and self.endpoints[source].vocabulary == vocabulary

    def _by_rule(self, end: End) -> Prompt:
        try:
            return checked_prompt(self.rule.prompt_for(end, copy_prompt(self.prompt)))
        except Exception as error:  # a user's function
            self._failed(end, error)
            return self.prompt

    async def _ask(self, end: End, wanted: Prompt) -> None:
        self._prompts[end] = await asyncio.to_thread(self._build, end, wanted)

    def _build(self, end: End, prompt: Prompt) -> tuple[Prompt, int]:
        if is_chat(prompt) and end not in self._unbuilt:
            try:
                prompt = checked_prompt(self.endpoints[end].apply_chat_template(prompt))
            except Exception as error:
                self._failed(end, error)
        alike = end in self._given and prompt == self.prompt
        return prompt, self._given[end] if alike else self._counted(end, prompt)

    def _failed(self, end: End, error: Exception) -> None:
        self._unbuilt[end] = f"no prompt could be made for {self.endpoints[end].name}: {describe(error)}"

    def _counted(self, end: End, prompt: Prompt) -> int:
        endpoint = self.endpoints[end]
        try:
            counted = endpoint.count(prompt)
            if isinstance(counted, Estimate):
                note(self.record.warnings, f"{endpoint.name}: the prompt's tokens are estimated")
            return 0 if counted == 0 else checks.count(counted, "the count")
        except Exception as error:  # a user's function
            note(self.record.warnings, f"{endpoint.name} cannot count tokens: {describe(error)}")
            return estimate(prompt)


def note(texts: list[str], text: str | None) -> None:
    """Add a text, if there is one, to a list of the record, once."""
    if text and text not in texts:
        texts.append(text)


def describe(error: BaseException) -> str:
    """An exception in one line, by its type alone where its own text cannot be had."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
