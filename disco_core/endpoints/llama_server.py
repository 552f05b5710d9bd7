"""A llama.cpp server over its native `/completion`: token ids in, token ids out, a cancel that is confirmed.

How the server behaves, and how that is handled:

- It holds back the tokens of an unfinished character and sends the id of the last one only. `tokens_predicted` gives
  their number, and tokenising the character with `/tokenize` gives the other ids.
- It sends the token that ends the turn in an event without text. So such a token waits for the next event, which
  shows whether it belongs to the answer.
- It notices a closed connection only when it writes. So progress reports are requested: with them it also writes
  during prefill, after every batch.
- It drops idle connections now and then. If a connection that was used before breaks before any byte has come, the
  request is sent once more on a new connection, and does not count as failed.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import lru_cache
from typing import Any

import httpx

from disco_core import checks
from disco_core.endpoints.base import Prefix, Prompt, Token, estimate, is_chat
from disco_core.endpoints.http import LONGEST_EVENT, Events, Remote, stale, watched
from disco_core.endpoints.vocabulary import PROBE, apply_chat_template, fingerprint, prompt_segments, validate_prompt
from disco_core.errors import CutError, EndpointError, ProtocolError, RefusedError, StalledError

QUESTION_S = 2.0  # seconds that a blocking query may take
MARK = "dry_allowed_length"  # a setting that `/slots` reports, of a sampler that is off
BROKEN = "\N{REPLACEMENT CHARACTER}"


class LlamaServerEndpoint(Remote):
    """An endpoint behind a llama.cpp server. The constructor queries the server, so that a wrong address fails there.

    url            of the server, such as `LocalServer.url`
    api_key        if the server requires one; it appears in no message and no record
    deadline_s     seconds without a byte after which it has failed
    confirm_s      seconds to wait until a cancelled request is confirmed to have stopped
    temperature    0 is greedy
    reuses         whether the server may use its prefix cache: a slot continues from the beginning it has in common
    unconfirmed    cancelled requests that the server did not confirm in time to have stopped
    estimated      token counts that were estimated, since the server did not answer

    RefusedError if it cannot be reached or used, ProtocolError if it is something else. `count` of a text or of
    messages, which the server puts in its chat template, blocks the first time for a query (about a millisecond on
    the same machine); a server that did not answer is not queried again for `deadline_s`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        name: str = "llama-server",
        deadline_s: float = 30.0,
        confirm_s: float = 5.0,
        temperature: float = 0.0,
        reuses: bool = False,
    ) -> None:
        super().__init__(name, url, api_key, deadline_s)
        self.url, self.continues, self.reuses = self._address, True, reuses
        self.temperature = checks.number(temperature, "temperature")
        self.confirm_s = checks.positive(confirm_s, "confirm_s")
        self.unconfirmed = self.estimated = 0
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        verify = httpx.create_ssl_context(trust_env=False) if self.url.startswith("https:") else False
        self._http: dict[str, Any] = {"headers": headers, "verify": verify, "trust_env": False}
        self._mute_until = 0.0
        self._tokenize, failed = lru_cache(maxsize=4096)(self._tokenized), None
        self._template = lru_cache(maxsize=256)(self._templated)
        try:
            self._size = int(self._ask("GET", "/v1/models")["data"][0]["meta"]["n_vocab"])
            self.context: int | None = int(self._ask("GET", "/props")["default_generation_settings"]["n_ctx"])
            self._bos = self._tokenize("", True)
            self.vocabulary = fingerprint(self._size, self._tokenize(PROBE, False))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            what = self._quote(repr(error), 80)
            failed = ProtocolError(name, f"it does not answer as a llama.cpp server does ({what})")
        if failed:  # raised here so that the server's text does not become its context
            raise failed

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt, with chat template and BOS if the model has one; an estimate if the server is gone."""
        if not (isinstance(prompt, str) or is_chat(prompt)):
            return len(prompt)
        if time.monotonic() >= self._mute_until:
            try:
                return len(self._tokenize(str(self.built(prompt)), True))
            except (
                EndpointError,
                ValueError,
                KeyError,
                TypeError,
            ):  # for `generate` to report: the other endpoint continues
                self._mute_until = time.monotonic() + self.deadline_s
        self.estimated += 1
        return estimate(prompt)

    def built(self, prompt: Prompt) -> str | Sequence[int]:
        """The prompt as the model gets it: messages in the chat template, which the server applies."""
        return apply_chat_template(prompt, self._template)

    async def generate(self, prefix: Prefix) -> AsyncGenerator[Token, None]:
        """The tokens that follow, up to the end of the turn.

        Closing returns once the server's slot is free; StalledError after `confirm_s`.
        """
        ids: list[int] = []
        prompt = prefix.prompt
        read = await asyncio.to_thread(self.built, prompt) if is_chat(prompt) else self.built(prompt)
        for i, part in enumerate(prompt_segments(read, prefix.generated)):
            if isinstance(part, str):
                part = list(await asyncio.to_thread(self._tokenize, part, i == 0))
            ids += part
        validate_prompt(self.name, prefix, ids, self._size, self.context)
        mark = secrets.randbelow(2**31)  # identifies the slot, so that `_free` can see when it has stopped
        request = {
            "prompt": ids,
            "n_predict": prefix.max_tokens,
            "temperature": self.temperature,
            "seed": -1 if prefix.seed is None else prefix.seed % 2**32,  # -1: the server draws one
            MARK: mark,
            "stream": True,
            "return_tokens": True,
            "return_progress": True,
            "cache_prompt": self.reuses,
        }
        reader = _Reader(self, prefix)
        failed: EndpointError | None = None
        try:
            async with self._events(request) as events:
                async for event in events:
                    for token in await reader.read(event):
                        yield token
        except (GeneratorExit, asyncio.CancelledError):
            if not reader.done:
                await self._free(mark)
            raise
        except EndpointError as error:
            failed = error
        if failed:  # raised here so that no other error becomes its context
            failed.__context__ = None
            raise failed
        if not reader.done:
            raise CutError(self.name, "the stream ended without a stop reason")

    async def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids; an unfinished character at its start or end is U+FFFD."""
        found = await asyncio.to_thread(self._ask, "POST", "/detokenize", {"tokens": list(ids)})
        return str(found["content"])

    async def ids_of(self, text: str) -> tuple[int, ...]:
        """The ids the server's tokenizer gives to a text, taken literally."""
        return await asyncio.to_thread(self._tokenize, text, False, False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, name={self.name!r})"

    def _new_client(self) -> httpx.AsyncClient:
        limits, hooks = httpx.Limits(max_connections=None, max_keepalive_connections=16), {"request": [watched]}
        timeout = httpx.Timeout(self.deadline_s)
        return httpx.AsyncClient(timeout=timeout, limits=limits, event_hooks=hooks, **self._http)

    @asynccontextmanager
    async def _events(self, request: dict[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The events of one `/completion`; every failure as an EndpointError with this endpoint's name."""
        async with AsyncExitStack() as stack:
            try:
                response = await self._send(request, stack)
                if response.status_code != 200:
                    raise self._refused(response, await response.aread())
                kind = response.headers.get("content-type", "none")
                if not kind.startswith("text/event-stream"):
                    raise ProtocolError(
                        self.name, f"it answered with {self._quote(kind)}, not with a stream of events"
                    )
                yield await stack.enter_async_context(aclosing(self._parsed(response)))
            except httpx.HTTPError as error:
                raise self._broken(error) from None

    async def _send(self, request: dict[str, Any], stack: AsyncExitStack) -> httpx.Response:
        async def send(client: httpx.AsyncClient) -> httpx.Response:
            message = client.build_request("POST", f"{self.url}/completion", json=request)
            response = await client.send(message, stream=True)
            stack.push_async_callback(response.aclose)
            return response

        try:
            return await send(self._pool())
        except httpx.HTTPError as error:
            if not stale(error):
                raise
            self.stale_retries += 1
            return await send(await stack.enter_async_context(self._new_client()))

    async def _parsed(self, response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
        events = Events()
        async for raw in response.aiter_raw():
            try:
                for data in events.feed(raw):
                    if data == "[DONE]":  # it does not say how the answer ended
                        continue
                    event = json.loads(data)
                    if not isinstance(event, dict):
                        raise ValueError(data)
                    yield event
            except ValueError as error:
                raise self._unreadable(error) from None

    async def _free(self, mark: int) -> None:
        """Wait until no slot processes the request any more; StalledError after `confirm_s`."""
        try:
            async with asyncio.timeout(self.confirm_s):
                while True:
                    slots = (await self._pool().get(f"{self.url}/slots")).json()
                    if not any(slot["is_processing"] and slot["params"][MARK] == mark for slot in slots):
                        return
                    await asyncio.sleep(0.005)
        except (httpx.HTTPError, TimeoutError, KeyError, TypeError, ValueError):
            self.unconfirmed += 1
            raise StalledError(self.name, "it did not confirm that it stopped") from None

    def _templated(self, messages: str) -> str:
        """Messages, as JSON, in the server's chat template."""
        try:
            found = self._ask("POST", "/apply-template", {"messages": json.loads(messages)})
            return checks.instance_of(found["prompt"], str, "prompt")
        except RefusedError as error:
            why = str(error).removeprefix(f"{self.name}: ")
            raise RefusedError(self.name, f"messages cannot be put in its chat template: {why}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise self._unreadable(f"/apply-template: {error!r}") from None

    def _tokenized(self, text: str, opening: bool, special: bool = True) -> tuple[int, ...]:
        request = {"content": text, "add_special": opening, "parse_special": special}
        ids = [int(id) for id in self._ask("POST", "/tokenize", request)["tokens"]]
        doubled = opening and bool(text) and tuple(ids[:2]) == self._bos * 2 != ()
        return tuple(ids[1:] if doubled else ids)

    def _ask(self, method: str, path: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """The server's reply to one short query; blocks."""
        timeout, raw = min(self.deadline_s, QUESTION_S), b""
        deadline, failed = time.monotonic() + timeout, None
        try:
            with httpx.stream(method, f"{self.url}{path}", json=request, timeout=timeout, **self._http) as response:
                for piece in response.iter_raw():
                    raw += piece
                    if len(raw) > LONGEST_EVENT or time.monotonic() > deadline:
                        raise ProtocolError(self.name, "its reply to a query does not end")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failed = self._broken(error)
        if failed:
            raise failed
        if response.status_code != 200:
            raise self._refused(response, raw)
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError(f"{path}: a {type(found).__name__}")
        return found

    def _refused(self, response: httpx.Response, body: bytes) -> RefusedError:
        try:
            said = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = ""
        return self._refusal(response.status_code, response.headers.get("retry-after"), said)


class _Reader:
    """The tokens in the events of one answer, numbered in order."""

    def __init__(self, endpoint: LlamaServerEndpoint, prefix: Prefix) -> None:
        self.endpoint, self.done = endpoint, False
        self.index = self.first = len(prefix.generated)
        self.budget = prefix.max_tokens
        self._empty: list[int | None] = []  # tokens without text: perhaps one that ends the turn
        self._open: list[int] = []  # the last tokens of the prefix, if its last character is unfinished
        for token in reversed(prefix.generated):
            if token.text or token.id is None:
                break
            self._open.insert(0, token.id)

    async def read(self, event: dict[str, Any]) -> list[Token]:
        """The tokens in an event; none in a progress report."""
        name = self.endpoint.name
        if "error" in event or "message" in event:
            said = event.get("error") or event
            said = said.get("message", "an error") if isinstance(said, dict) else said
            raise CutError(name, self.endpoint._quote(said, 300))
        if "prompt_progress" in event:
            return []
        try:
            text, ids = checks.instance_of(event["content"], str, "content"), [int(id) for id in event["tokens"]]
            stop = bool(event["stop"])
            made = int(event["tokens_predicted"]) - (self.index - self.first)
        except (KeyError, TypeError, ValueError) as error:
            raise self.endpoint._unreadable(repr(error)) from None
        if stop:
            return self._last(event, made)
        if not text:
            self._empty += ids
            return []
        made -= len(self._empty)
        before, self._empty = [Token(0, "", id) for id in self._empty], []
        return self._numbered(before + await self._completed(text, ids, made))

    def _last(self, event: dict[str, Any], made: int) -> list[Token]:
        """The tokens still held back, without one that ends the turn; all text of the event goes to the last."""
        name, why = self.endpoint.name, event.get("stop_type")
        if why not in ("eos", "word", "limit"):
            raise CutError(name, f"it stopped for no known reason: {self.endpoint._quote(repr(why))}")
        held = (self._empty + [None] * made)[: max(0, made - (why == "eos"))]
        texts = [""] * (len(held) - 1) + [str(event["content"])]
        tokens = self._numbered([Token(0, text, id) for text, id in zip(texts, held, strict=False)])
        made = self.index - self.first
        if why == "limit" and made < self.budget:
            raise CutError(name, f"it stopped after {made} of {self.budget} tokens: its context is full")
        self.done = True
        return tokens

    async def _completed(self, text: str, ids: list[int], made: int) -> list[Token]:
        """`made` tokens that share one text; all but the last were held back, and their ids have to be found out."""
        if len(ids) < made:
            found = await self.endpoint.ids_of(text)
            known = len(found) == made and list(found[made - len(ids) :]) == ids
            rest: list[int | None] = list(found) if known else [None] * (made - len(ids)) + list(ids)
        else:
            rest = list(ids)
        if self._open:
            text = await self._closed(text, rest)
        return [*(Token(0, "", id) for id in rest[:-1]), Token(0, text, rest[-1])]

    async def _closed(self, text: str, rest: list[int | None]) -> str:
        """The text of tokens that continue a character begun by another endpoint; "" while it is unfinished."""
        whole = [*self._open, *(id for id in rest if id is not None)]
        begun = BROKEN in await self.endpoint.text_of(self._open)  # otherwise they are tokens that never have a text
        text = await self.endpoint.text_of(whole) if begun and None not in rest else text
        self._open = whole if begun and text.endswith(BROKEN) else []
        return "" if self._open else text

    def _numbered(self, tokens: list[Token]) -> list[Token]:
        numbered = [Token(self.index + i, token.text, token.id) for i, token in enumerate(tokens)]
        self.index += len(numbered)
        return numbered
