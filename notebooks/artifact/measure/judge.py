"""A language model as a judge of two answers, behind any OpenAI-compatible endpoint: A, B, a tie, or no verdict.

Every pair is shown twice, in both orders, since judges lean to a place. A reply counts only if it is nothing but a
verdict; neither replies nor keys are kept.
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
REPLY_TOKENS = 512  # a verdict is one word, but some models think at the reader's expense before it
AT_ONCE = 4  # requests at one judge
MIGRATED, UNMIGRATED, TIE, NONE = "migrated", "unmigrated", "tie", "none"


@dataclass(frozen=True)
class Pair:
    """An answer that moved beside the one that did not, to the same words."""

    words: str
    migrated: str
    unmigrated: str


def names(judges: str) -> list[str]:
    """The judges of a list such as "openai:a, openai:b"; InputError for another name, or one that comes twice."""
    found = [one.strip() for one in judges.split(",") if one.strip()]
    for one in found:
        if not one.startswith("openai:") or one == "openai:":
            raise InputError(f'a judge must be "openai:<model>", got {one!r:.80}')
        if found.count(one) > 1:
            raise InputError(f"a judge must be named once, got {one!r:.80} twice")
    return found


def endpoints(judges: str, url: str = "") -> list[OpenAIEndpoint]:
    """An endpoint for each judge, at `url`, or where OPENAI_BASE_URL says; RefusedError without OPENAI_API_KEY."""
    return [OpenAIEndpoint(one.removeprefix("openai:"), base_url=url or None, name=one) for one in names(judges)]


def server(judges: str, url: str = "") -> dict[str, str] | None:
    """Name and address of the judges' server, for the manifest; nothing where there are no judges."""
    found = endpoints(judges, url)
    return {"name": judges, "address": found[0].base_url} if found else None


def read(reply: str) -> str | None:
    """ "A", "B" or "TIE" where a reply is nothing but that; None for anything else.

    >>> read(" b. "), read("Tie"), read("A or B"), read("")
    ('B', 'TIE', None, None)
    """
    found = re.fullmatch(r"\s*[\"'*]*(A|B|TIE)[\"'*]*\.?\s*", reply, re.IGNORECASE)
    return found[1].upper() if found else None


async def verdicts(judge: Endpoint, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """What a judge says of each pair in both orders: rows of (judge, pair, first, verdict).

    pair      its number
    first     which of the two was shown as A
    verdict   "migrated", "unmigrated", "tie"; "none" for a reply that is no verdict, or a request that failed
    """
    free = asyncio.Semaphore(AT_ONCE)

    async def ask(k: int, first: str) -> dict[str, Any]:
        pair, second = pairs[k], UNMIGRATED if first == MIGRATED else MIGRATED
        shown = {MIGRATED: pair.migrated, UNMIGRATED: pair.unmigrated}
        prompt, said = QUESTION.format(words=pair.words, a=shown[first], b=shown[second]), None
        # one that fails now and then still judges; how often is counted
        async with free:
            with suppress(EndpointError):
                async with aclosing(judge.generate(Prefix(prompt, (), REPLY_TOKENS))) as tokens:
                    said = read("".join([token.text async for token in tokens]))
        verdict = {"A": first, "B": second, "TIE": TIE}.get(said or "", NONE)
        return {"judge": judge.name, "pair": k, "first": first, "verdict": verdict}

    asked = itertools.product(range(len(pairs)), (MIGRATED, UNMIGRATED))
    return list(await asyncio.gather(*(ask(k, first) for k, first in asked)))
