"""What a server is, before it is measured: reachable, with the model, streaming, and how it continues an answer."""

import asyncio
import os
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from artifact.errors import ArtifactError
from artifact.pair.prompts import Count
from artifact.pair.server import DEADLINE_S
from disco_core.endpoints.base import Prefix
from disco_core.endpoints.openai import QUESTION, Continuation, OpenAIEndpoint
from disco_core.errors import EndpointError, RefusedError

LISTED = 12  # models that a message names
TOGETHER_S = 5e-4  # a median gap between pieces below this: they were held back and came together
ASKED = 16  # tokens of the answer that shows whether it streams

REACH_S = 10.0  # seconds without an answer to the first question, after which it cannot be reached

Say = Callable[[str], None]


@dataclass
class Probe:
    """A server that can be measured.

    model          its name there
    continuation   how it continues an open assistant turn, "none" if it does not
    options        parameters that it needs, beyond the usual ones
    sent           requests that the probe sent
    notes          what limits a study of it, one sentence each
    """

    url: str
    model: str
    continuation: Continuation = "none"
    echoes: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sent: int = 0
    notes: list[str] = field(default_factory=list)

    def endpoint(self, count: Count | None = None, *, continues: bool = False) -> OpenAIEndpoint:
        """The server as an endpoint that streams, as it was probed; `continues`: which takes over answers as well."""
        options = dict(self.options)
        temperature = options.pop("temperature", 0.0)
        made = OpenAIEndpoint(
            self.model,
            base_url=self.url,
            continuation=self.continuation if continues else "none",
            count_tokens=None if count is None else lambda text: count([{"role": "user", "content": text or " "}]),
            name="SERVER",
            deadline_s=DEADLINE_S,
            options=options | ({} if temperature is not None else {"temperature": None}),
        )
        made.echoes = self.echoes
        return made


async def probe(url: str, model: str | None, tokens: int, say: Say) -> Probe:
    """Ask a server what it is; `say` gets a line for each thing that was found out.

    tokens   the longest answer that will be measured
    ArtifactError, one line, for a server that cannot be reached, needs a key, lacks the model or does not stream.
    """
    listed, refused = await _models(url)
    say(f"SERVER {url}: reachable" + (f", {len(listed)} model{'s' * (len(listed) != 1)}" if listed else ""))
    found = Probe(url, _chosen(url, model, listed, refused))
    await _streams(found, listed, tokens, say)
    say(_key() + ("" if os.environ.get("OPENAI_API_KEY") else ", and none is needed"))
    await _continues(found, say)
    return found


async def _models(url: str) -> tuple[list[str], str]:
    """The models that the server lists, none if it has no list, and what it says instead.

    ArtifactError if it cannot be used at all.
    """
    failures = OpenAIEndpoint("model", base_url=url, name="SERVER").failures
    headers = {"Authorization": f"Bearer {failures.key}"} if failures.key else {}
    try:
        async with httpx.AsyncClient(trust_env=True, timeout=REACH_S, follow_redirects=True) as client:
            response = await client.get(f"{url}/models", headers=headers)
    except Exception as error:  # of the transport, of TLS, of a proxy in the environment
        raise ArtifactError(str(failures.broken(error))) from None
    if response.status_code in (401, 403):
        raise ArtifactError(_without_key(failures.refusal(response, response.content), failures.key))
    try:
        rows = response.json()["data"] if response.is_success else []
        return [str(row["id"]) for row in rows], "" if rows else f"it answers {response.status_code}"
    except (ValueError, KeyError, TypeError):
        return [], "its list is none"


def _without_key(error: EndpointError, key: str | None) -> str:
    if key is None:
        return f"SERVER needs a key: set OPENAI_API_KEY in the environment ({error})"
    return f"SERVER does not accept the key in OPENAI_API_KEY ({error})"


def _chosen(url: str, model: str | None, listed: list[str], refused: str) -> str:
    if model is not None:
        return model
    if len(listed) == 1:
        return listed[0]
    hint = "" if listed else f" ({refused}){_ending(url)}; {_key()}"
    raise ArtifactError(f"MODEL is missing; {_those(listed)}{hint}")


def _key() -> str:
    """Whether a key is sent."""
    return "the key of OPENAI_API_KEY is sent" if os.environ.get("OPENAI_API_KEY") else "no key is sent"


def _ending(url: str) -> str:
    """What may be wrong with an address where nothing is found."""
    return "" if url.endswith("/v1") else "; SERVER often ends in /v1"


def _those(listed: list[str]) -> str:
    names = ", ".join(listed[:LISTED]) + (", ..." if len(listed) > LISTED else "")
    return f"the server has {names}" if listed else "the server does not list its models"


async def _streams(found: Probe, listed: list[str], tokens: int, say: Say) -> None:
    """Check that an answer comes piece by piece; note what is odd about it."""
    pieces, reasoning, asked = await _asked(found, listed, max(tokens, ASKED))
    together = len(pieces) > 2 and np.median(np.diff([at for at, _ in pieces])) < TOGETHER_S
    if together:  # once more, since a busy moment of this machine looks the same
        pieces, reasoning, asked = await _asked(found, listed, max(tokens, ASKED))
        together = len(pieces) > 2 and np.median(np.diff([at for at, _ in pieces])) < TOGETHER_S
    text = "".join(text for _, text in pieces)
    if not pieces:
        what = f"it only reasons within {asked} tokens; raise TOKENS" if reasoning else "its answer has no token"
        raise ArtifactError(f"SERVER: {what}")
    if len(pieces) == 1 and len(text.split()) > 2:
        raise ArtifactError(
            "SERVER does not stream: its answer came in one piece; only a server that streams can be raced"
        )
    if together:
        raise ArtifactError(
            f"SERVER does not stream: its {len(pieces)} pieces came together at the end; "
            "something in between holds them back"
        )
    odd = listed and found.model not in (*listed, *(name.removesuffix(":latest") for name in listed))
    say(f"MODEL {found.model}: answers" + (", though it is not listed" if odd else ""))
    if odd:
        found.notes.append(f"{found.model} is not among the server's models, and yet it answered; {_those(listed)}")
    say(f"streams: yes, {len(pieces)} pieces of text" + (", after reasoning" if reasoning else ""))


async def _asked(found: Probe, listed: list[str], n: int) -> tuple[list[tuple[float, str]], bool, int]:
    """The pieces of an answer of up to n tokens with their times, and whether it reasons."""
    for _ in range(2):
        try:
            return *await _pieces(found, n), n
        except EndpointError as error:
            words = str(error).lower()
            if isinstance(error, RefusedError) and "temperature" in words and not found.options:
                found.options["temperature"] = None  # some reasoning models take none
                continue
            raise ArtifactError(_refused(found, listed, error)) from None
    raise AssertionError


async def _pieces(found: Probe, n: int) -> tuple[list[tuple[float, str]], bool]:
    clock, pieces, reasoning = asyncio.get_running_loop().time, list[tuple[float, str]](), False
    found.sent += 1
    async with found.endpoint() as endpoint, aclosing(endpoint.generate(_counting(n))) as tokens:
        async for token in tokens:
            reasoning = reasoning or token.reasoning
            pieces += [] if token.reasoning else [(clock(), token.text)]
    return pieces, reasoning


def _counting(n: int) -> Prefix:
    return Prefix([{"role": "user", "content": QUESTION}], (), n)


def _refused(found: Probe, listed: list[str], error: EndpointError) -> str:
    """Why it gave no answer, with what may be wrong."""
    text, key = str(error), os.environ.get("OPENAI_API_KEY")
    if isinstance(error, RefusedError) and any(f": {code}" in text for code in (401, 403)):
        return _without_key(error, key)
    if listed and found.model not in listed:
        return f"MODEL {found.model}: {text}; {_those(listed)}"
    text += _ending(found.url) if ": 404" in text else ""
    # some proxies do not say that the key is what they miss
    return text + (f"; {_key()}" if any(f": {code}" in text for code in (400, 500)) else "")


async def _continues(found: Probe, say: Say) -> None:
    """Find out how the server continues an open answer; only then can an answer move to it."""
    async with found.endpoint() as endpoint:
        asking = OpenAIEndpoint(
            found.model,
            base_url=found.url,
            continuation="probe",
            name="SERVER",
            deadline_s=DEADLINE_S,
            options=endpoint.options,
        )
        async with asking:
            way = await asking.probe()
    found.sent += len(asking.probed)
    raw = way == "completions"  # of a text in the model's chat template, which nobody knows here
    way = "none" if raw else way
    found.continuation, found.echoes = way, asking.echoes if way != "none" else None
    if way == "none":
        no = "only raw completions, which need the model's chat template" if raw else "no"
        say(f"continues answers: {no}; an answer can move from it, not to it")
        found.notes.append("the server does not continue an open answer: answers can move from it, not to it")
    else:
        say(f"continues answers: yes ({way})")
