"""A language model as a judge of two answers, at any OpenAI-compatible endpoint: A, B, a tie, or no verdict.

Every pair is shown twice, in both orders, since judges have a position bias. A reply counts only if it is nothing but
a verdict; neither replies nor keys are stored.
"""

import asyncio
import itertools
import re
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from disco_core.endpoints.base import Endpoint, Prefix
from disco_core.endpoints.openai import OpenAIEndpoint
from disco_core.errors import EndpointError, InputError

QUESTION = """Which of two answers to a request is better? Judge what they say and how they read.
Both may be cut off at the end: do not hold that against either.

Request: {words}

Answer A: {a}

Answer B: {b}

Reply with one word and nothing else: A, B, or TIE."""
REPLY_TOKENS = 512  # a verdict is one word, but some models reason before it, in tokens that count
AT_ONCE = 4  # concurrent requests to one judge
MIGRATED, UNMIGRATED, TIE, NONE = "migrated", "unmigrated", "tie", "none"


@dataclass(frozen=True)
class Pair:
    """A migrated and an unmigrated answer to the same request, `words`."""

    words: str
    migrated: str
    unmigrated: str


def names(judges: str) -> list[str]:
    """The judges in a list such as "openai:a, openai:b"; InputError for another form of name, or a duplicate."""
    found = [one.strip() for one in judges.split(",") if one.strip()]
    for one in found:
        if not one.startswith("openai:") or one == "openai:":
            raise InputError(f'a judge must be "openai:<model>", got {one!r:.80}')
        if found.count(one) > 1:
            raise InputError(f"a judge must be named once, got {one!r:.80} twice")
    return found


def endpoints(judges: str, url: str = "") -> list[OpenAIEndpoint]:
    """An endpoint for each judge, at `url` or OPENAI_BASE_URL; RefusedError without OPENAI_API_KEY."""
    return [OpenAIEndpoint(one.removeprefix("openai:"), base_url=url or None, name=one) for one in names(judges)]


def server(judges: str, url: str = "") -> dict[str, str] | None:
    """Name and address of the judges' server, for the manifest; None if there are no judges."""
    found = endpoints(judges, url)
    return {"name": judges, "address": found[0].base_url} if found else None


def read(reply: str) -> str | None:
    """ "A", "B" or "TIE" if the reply is nothing else; otherwise None.

    >>> read(" b. "), read("Tie"), read("A or B"), read("")
    ('B', 'TIE', None, None)
    """
    found = re.fullmatch(r"\s*[\"'*]*(A|B|TIE)[\"'*]*\.?\s*", reply, re.IGNORECASE)
    return found[1].upper() if found else None


async def verdicts(judge: Endpoint, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The verdicts of a judge on each pair in both orders: rows of (judge, pair, first, verdict).

    pair      its number
    first     which of the two was shown as A
    verdict   "migrated", "unmigrated", "tie"; "none" for a reply that is no verdict, or a request that failed
    """
    free = asyncio.Semaphore(AT_ONCE)

    async def ask(k: int, first: str) -> dict[str, Any]:
        pair, second = pairs[k], UNMIGRATED if first == MIGRATED else MIGRATED
        shown = {MIGRATED: pair.migrated, UNMIGRATED: pair.unmigrated}
        prompt, said = QUESTION.format(words=pair.words, a=shown[first], b=shown[second]), None
        # a failed request is counted as no verdict, and the judge continues with the next
        async with free:
            with suppress(EndpointError):
                async with aclosing(judge.generate(Prefix(prompt, (), REPLY_TOKENS))) as tokens:
                    said = read("".join([token.text async for token in tokens]))
        verdict = {"A": first, "B": second, "TIE": TIE}.get(said or "", NONE)
        return {"judge": judge.name, "pair": k, "first": first, "verdict": verdict}

    asked = itertools.product(range(len(pairs)), (MIGRATED, UNMIGRATED))
    return list(await asyncio.gather(*(ask(k, first) for k, first in asked)))
