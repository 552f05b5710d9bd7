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
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, TypeVar

import httpx

from disco_core import checks
from disco_core.endpoints.base import Estimate, Generation, Prefix, Prompt, Token, estimate, is_chat
from disco_core.endpoints.events import BROKEN, LONGEST_EVENT, as_dict, token_count
from disco_core.endpoints.http import Remote, RemoteAnswer
from disco_core.endpoints.vocabulary import LlamaEndpoint
from disco_core.errors import CutError, EndpointError, ProtocolError, RefusedError, StalledError

T = TypeVar("T")

QUESTION_S = 2.0  # seconds that a blocking query may take
MARK = "dry_allowed_length"  # a setting that `/slots` reports, of a sampler that is off


class LlamaServerEndpoint(LlamaEndpoint, Remote):
    """An endpoint behind a llama.cpp server. The constructor queries the server, so that a wrong address fails there.

    url            of the server, such as `LocalServer.url`
    api_key        if the server requires one; it appears in no message and no record
    deadline_s     seconds without a byte after which it has failed
    confirm_s      seconds to wait until a cancelled request is confirmed to have stopped
    temperature    0 is greedy; `top_p` None: the server's default
    stop           one or several texts: what this endpoint generates ends before one, also where that began in the
                   text it continues
    prefix_cache   whether the server may use it: a slot continues from the beginning it has in common
    unconfirmed    cancelled requests that the server did not confirm in time to have stopped
    estimated      token counts that were estimated, since the server did not answer

    RefusedError if it cannot be reached or used, ProtocolError if it is something else. `count` of a text or of
    messages, which the server puts in its chat template, blocks the first time for a query (about a millisecond on
    the same machine); a server that did not answer is not queried again for `deadline_s`.
    """

    remote = True

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        name: str = "llama-server",
        deadline_s: float = 30.0,
        confirm_s: float = 5.0,
        temperature: float = 0.0,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        prefix_cache: bool = False,
    ) -> None:
        secure = isinstance(url, str) and url.startswith("https:")
        verify = httpx.create_ssl_context(trust_env=False) if secure else False
        super().__init__(name, url, api_key, deadline_s, {"verify": verify, "trust_env": False})
        self._configure(temperature, top_p, stop, prefix_cache)
        self.url, self.confirm_s = self.failures.address, checks.positive(confirm_s, f"{name}: confirm_s")
        self.unconfirmed = self.estimated = 0
        self._mute_until = 0.0
        self._identify(*self._facts())
        self._bos = self._tokenize("", True)

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt, with chat template and BOS if the model has one; an `Estimate` if it is gone."""
        mute = time.monotonic() < self._mute_until and (isinstance(prompt, str) or is_chat(prompt))
        counted = Estimate(estimate(prompt)) if mute else super().count(prompt)
        if isinstance(counted, Estimate):
            self.estimated += 1
            self._mute_until = self._mute_until if mute else time.monotonic() + self.deadline_s
        return counted

    def generate(self, prefix: Prefix) -> Generation:
        """The tokens that follow, up to the end of the turn.

        Closing returns once the server's slot is free; StalledError after `confirm_s`.
        """
        return _Answer(self, prefix)

    async def probe(self) -> str:
        """How it continues an answer: exactly, by the ids of its tokens."""
        return "ids"

    async def _request(self, answer: "_Answer") -> dict[str, Any]:
        prefix = answer.prefix
        ids = await asyncio.to_thread(self._ids, prefix)
        answer.prefix_tokens = len(ids)
        answer.mark = secrets.randbelow(2**31)  # identifies the slot, so that `_free` can see when it has stopped
        return {
            "prompt": ids,
            "n_predict": prefix.max_tokens,
            "temperature": self.temperature,
            "seed": -1 if prefix.seed is None else prefix.seed % 2**32,  # -1: the server draws one
            MARK: answer.mark,
            "stream": True,
            "return_tokens": True,
            "return_progress": True,
            "cache_prompt": self.prefix_cache,
        } | ({} if self.top_p is None else {"top_p": self.top_p})

    async def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids; an unfinished character at its start or end is U+FFFD."""
        request = {"tokens": list(ids)}
        return await asyncio.to_thread(self._ask, "/detokenize", lambda found: str(found["content"]), request)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, name={self.name!r})"

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
        request = {"messages": json.loads(messages)}
        try:
            return self._ask("/apply-template", lambda found: checks.instance_of(found["prompt"], str, "it"), request)
        except RefusedError as error:
            why = str(error).removeprefix(f"{self.name}: ")
            raise RefusedError(self.name, f"messages cannot be put in its chat template: {why}") from None

    def _tokenized(self, text: str, opening: bool, special: bool = True) -> tuple[int, ...]:
        request = {"content": text, "add_special": opening, "parse_special": special}
        ids = self._ask("/tokenize", lambda found: tuple(int(id) for id in found["tokens"]), request)
        doubled = opening and bool(text) and ids[:2] == self._bos * 2 != ()
        return ids[1:] if doubled else ids

    def _ask(self, path: str, read: Callable[[Any], T], request: dict[str, Any] | None = None) -> T:
        """What `read` takes from the server's reply to a short query, which is a POST if it has a request; blocks."""
        timeout, raw = min(self.deadline_s, QUESTION_S), b""
        deadline, method = time.monotonic() + timeout, "POST" if request else "GET"
        settings = {"json": request, "timeout": timeout, **self._settings}
        try:
            with httpx.stream(method, f"{self.url}{path}", **settings) as response:
                for piece in response.iter_raw():
                    raw += piece
                    if len(raw) > LONGEST_EVENT or time.monotonic() > deadline:
                        raise ProtocolError(self.name, "its reply to a query does not end")
            if not response.is_success:
                raise self.failures.refusal(response, raw)
            return read(json.loads(raw))
        except EndpointError:
            raise
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failed = self.failures.broken(error)
        except Exception as error:  # a reply of any other shape
            what = f"{self.url}{path} does not answer as a llama.cpp server does"
            failed = ProtocolError(self.name, f"{what}: {self.failures.quote(repr(error), 80)}")
        raise failed  # here, so that the server's text does not become its context

    def _facts(self) -> tuple[int, int]:
        """Tokens of the vocabulary and of the context; an EndpointError says what else it is, and what to do."""
        todo = "start a llama-server with `--model` for the one you want, or use OpenAIEndpoint with its name"
        router = RefusedError(self.name, f"{self.url} is llama.cpp's router, which serves several models: {todo}")

        def sizes(props: dict[str, Any]) -> tuple[int, int]:
            if props.get("role") == "router":
                raise router
            return int(model["meta"]["n_vocab"]), int(props["default_generation_settings"]["n_ctx"])

        model = self._ask("/v1/models", lambda found: dict(found["data"][0]))
        if "meta" not in model and "status" not in model:
            todo = "use OpenAIEndpoint, with /v1 after the address"
            raise ProtocolError(self.name, f"{self.url} is no llama.cpp server: {todo}")
        if "meta" not in model:
            raise router
        if not model["meta"]:
            raise RefusedError(self.name, f"{self.url} has not loaded its model yet: try again when it has")
        return self._ask("/props", sizes)


class _Answer(RemoteAnswer):
    """The tokens in the events of one answer, numbered in order; it counts what was prefilled."""

    endpoint: LlamaServerEndpoint

    BEGIN_S = 1.0  # a request that is in no slot yet would seem to have stopped, and then begin
    mark: int | None = None  # of a request that may have been sent
    prefix_tokens = 0

    def __init__(self, endpoint: LlamaServerEndpoint, prefix: Prefix) -> None:
        super().__init__(endpoint, "/completion", lambda: endpoint._request(self), prefix)
        self.index = self.first = len(prefix.generated)
        self._empty: list[int | None] = []  # tokens without text: perhaps one that ends the turn
        # the last tokens of the prefix, if its last character is unfinished
        last = takewhile(lambda token: not token.text and token.id is not None, reversed(prefix.generated))
        self._open = [token.id for token in last if token.id is not None][::-1]

    async def cancelled(self) -> None:
        """Return when the server has stopped."""
        if self.mark is not None:
            await self.endpoint._free(self.mark)

    async def read(self, event: dict[str, Any]) -> list[Token]:
        """The tokens in an event; none in a progress report."""
        if self.done:
            return []
        if "prompt_progress" in event:
            self.prefilled = token_count(as_dict(event["prompt_progress"]).get("processed"))
            return []
        text, ids = checks.instance_of(event["content"], str, "content"), [int(id) for id in event["tokens"]]
        stop, counted = bool(event["stop"]), int(event["tokens_predicted"])
        if not self.made <= counted <= self.prefix.max_tokens:
            raise ProtocolError(self.endpoint.name, f"it counts {counted} tokens after {self.made}")
        self.made, self.prefilled = counted, self.prefix_tokens
        made = self.made - (self.index - self.first)
        if stop:
            return self._last(event, made)
        if not text:
            self._empty += ids
            return []
        before, self._empty = self._empty, []
        whole = [*before, *await self._completed(text, ids, made - len(before))]
        return self._numbered(whole, await self._closed(text, whole) if self._open else text)

    def _last(self, event: dict[str, Any], made: int) -> list[Token]:
        """The tokens still held back, without one that ends the turn; all text of the event goes to the last."""
        name, why = self.endpoint.name, event.get("stop_type")
        why = why or next((one for one in ("eos", "word", "limit") if event.get(f"stopped_{one}")), None)
        if why not in ("eos", "word", "limit"):
            raise CutError(name, f"it stopped for no known reason: {self.endpoint.failures.quote(repr(why))}")
        held = (self._empty + [None] * made)[: max(0, made - (why == "eos"))]
        tokens = self._numbered(held, event["content"])
        self.made = self.index - self.first
        if why == "limit" and self.made < self.prefix.max_tokens:
            why = f"it stopped after {self.made} of {self.prefix.max_tokens} tokens: its context is full"
            raise CutError(name, why)
        self.done = True
        return tokens

    async def _completed(self, text: str, ids: list[int], made: int) -> Sequence[int | None]:
        """The ids of `made` tokens that share one text; those that were held back have to be found out."""
        missing = made - len(ids)
        if missing <= 0:
            return ids
        if not text.isascii():  # only the tokens of an unfinished character are held back
            found = await asyncio.to_thread(self.endpoint._tokenize, text, False, False)
            if len(found) == made and [*found[missing:]] == ids:
                return found
            if (await self.endpoint.text_of(ids)).startswith(BROKEN):  # they end a character
                return [*[None] * missing, *ids]
        raise ProtocolError(self.endpoint.name, f"{missing} of its tokens have not come")

    async def _closed(self, text: str, ids: list[int | None]) -> str:
        """The text of tokens that continue a character begun by another endpoint; "" while it is unfinished."""
        known = [*self._open, *(id for id in ids if id is not None)]
        begun = BROKEN in await self.endpoint.text_of(self._open)  # otherwise they are tokens that never have a text
        text = await self.endpoint.text_of(known) if begun and None not in ids else text
        self._open = known if begun and text.endswith(BROKEN) else []
        return "" if self._open else text

    def _numbered(self, ids: Sequence[int | None], text: str) -> list[Token]:
        """The next tokens, of which the last has the text."""
        start, self.index = self.index, self.index + len(ids)
        last = self.index - 1
        return [Token(i, text if i == last else "", id) for i, id in enumerate(ids, start)]
