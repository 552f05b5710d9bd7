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
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import httpx

from disco_core import checks
from disco_core.endpoints.base import Estimate, Generation, Prefix, Prompt, Token, estimate, is_chat
from disco_core.endpoints.events import BROKEN, LONGEST_EVENT, as_dict, token_count
from disco_core.endpoints.http import Remote, RemoteAnswer
from disco_core.endpoints.stop import sampling, stop_texts
from disco_core.endpoints.vocabulary import PROBE, apply_chat_template, fingerprint, prompt_segments, validate_prompt
from disco_core.errors import CutError, EndpointError, ProtocolError, RefusedError, StalledError

QUESTION_S = 2.0  # seconds that a blocking query may take
MARK = "dry_allowed_length"  # a setting that `/slots` reports, of a sampler that is off


class LlamaServerEndpoint(Remote):
    """An endpoint behind a llama.cpp server. The constructor queries the server, so that a wrong address fails there.

    url            of the server, such as `LocalServer.url`
    api_key        if the server requires one; it appears in no message and no record
    deadline_s     seconds without a byte after which it has failed
    confirm_s      seconds to wait until a cancelled request is confirmed to have stopped
    temperature    0 is greedy; `top_p` None: the server's default; `stop`: one or several texts that end the answer
    prefix_cache   whether the server may use it: a slot continues from the beginning it has in common
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
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        prefix_cache: bool = False,
    ) -> None:
        secure = isinstance(url, str) and url.startswith("https:")
        verify = httpx.create_ssl_context(trust_env=False) if secure else False
        super().__init__(name, url, api_key, deadline_s, {"verify": verify, "trust_env": False})
        self.url, self.continues, self.remote = self._address, True, True
        self.prefix_cache = checks.instance_of(prefix_cache, bool, f"{name}: prefix_cache")
        self.temperature, self.top_p = sampling(name, temperature, top_p)
        self.stop = stop_texts(stop, f"{name}: stop")
        self.confirm_s = checks.positive(confirm_s, f"{name}: confirm_s")
        self.unconfirmed = self.estimated = 0
        self._mute_until = 0.0
        self._tokenize, failed = lru_cache(maxsize=4096)(self._tokenized), None
        self._template = lru_cache(maxsize=256)(self._templated)
        try:
            self._size, self.context = self._facts()
            self._bos = self._tokenize("", True)
            self.vocabulary = fingerprint(self._size, self._tokenize(PROBE, False))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            what = self._quote(repr(error), 80)
            failed = ProtocolError(name, f"it does not answer as a llama.cpp server does ({what})")
        if failed:  # raised here so that the server's text does not become its context
            raise failed

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt, with chat template and BOS if the model has one; an `Estimate` if the server is gone."""
        if not (isinstance(prompt, str) or is_chat(prompt)):
            return len(prompt)
        if time.monotonic() >= self._mute_until:
            try:
                return len(self._tokenize(str(self.apply_chat_template(prompt)), True))
            except (EndpointError, ValueError, KeyError, TypeError):  # for `generate` to report
                self._mute_until = time.monotonic() + self.deadline_s
        self.estimated += 1
        return Estimate(estimate(prompt))

    def apply_chat_template(self, prompt: Prompt) -> str | Sequence[int]:
        """The prompt as the model gets it: messages in the chat template, which the server applies."""
        return apply_chat_template(prompt, self._template)

    def generate(self, prefix: Prefix) -> Generation:
        """The tokens that follow, up to the end of the turn.

        Closing returns once the server's slot is free; StalledError after `confirm_s`.
        """
        return _Answer(self, prefix)

    async def probe(self) -> str:
        """How it continues an answer: exactly, by the ids of its tokens."""
        return "ids"

    async def _request(self, answer: "_Answer") -> dict[str, Any]:
        ids, prefix = list[int](), answer.prefix
        given, chat = prefix.prompt, is_chat(prefix.prompt)
        prompt = await asyncio.to_thread(self.apply_chat_template, given) if chat else self.apply_chat_template(given)
        for i, part in enumerate(prompt_segments(prompt, prefix.generated)):
            if isinstance(part, str):
                part = list(await asyncio.to_thread(self._tokenize, part, i == 0))
            ids += part
        validate_prompt(self.name, prefix, ids, self._size, self.context)
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
        found = await asyncio.to_thread(self._ask, "POST", "/detokenize", {"tokens": list(ids)})
        return str(found["content"])

    async def ids_of(self, text: str) -> tuple[int, ...]:
        """The ids the server's tokenizer gives to a text, taken literally."""
        return await asyncio.to_thread(self._tokenize, text, False, False)

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
            settings = {"json": request, "timeout": timeout, **self._settings}
            with httpx.stream(method, f"{self.url}{path}", **settings) as response:
                for piece in response.iter_raw():
                    raw += piece
                    if len(raw) > LONGEST_EVENT or time.monotonic() > deadline:
                        raise ProtocolError(self.name, "its reply to a query does not end")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failed = self._broken(error)
        if failed:
            raise failed
        if not response.is_success:
            raise self._refusal(response, raw)
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError(f"{path}: a {type(found).__name__}")
        return found

    def _facts(self) -> tuple[int, int]:
        """Tokens of the vocabulary and of the context; an EndpointError says what else it is, and what to do."""
        model = self._ask("GET", "/v1/models")["data"][0]
        if "meta" not in model and "status" not in model:
            raise ProtocolError(
                self.name, "it is no llama.cpp server: use OpenAIEndpoint, with /v1 after the address"
            )
        props = self._ask("GET", "/props") if model.get("meta") else {}
        if props.get("role") == "router" or "meta" not in model:
            todo = "start a llama-server with `--model` for the one you want, or use OpenAIEndpoint with its name"
            raise RefusedError(self.name, f"it is llama.cpp's router, which serves several models: {todo}")
        if not props:
            raise RefusedError(self.name, "it has not loaded its model yet: try again when it has")
        return int(model["meta"]["n_vocab"]), int(props["default_generation_settings"]["n_ctx"])


class _Answer(RemoteAnswer):
    """The tokens in the events of one answer, numbered in order; it counts what was prefilled."""

    endpoint: LlamaServerEndpoint

    mark: int | None = None  # of a request that may have been sent
    prefix_tokens = 0

    def __init__(self, endpoint: LlamaServerEndpoint, prefix: Prefix) -> None:
        super().__init__(endpoint, "/completion", lambda: endpoint._request(self), prefix)
        self.index = self.first = len(prefix.generated)
        self._empty: list[int | None] = []  # tokens without text: perhaps one that ends the turn
        self._open: list[int] = []  # the last tokens of the prefix, if its last character is unfinished
        for token in reversed(prefix.generated):
            if token.text or token.id is None:
                break
            self._open.insert(0, token.id)

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
        try:
            text, ids = checks.instance_of(event["content"], str, "content"), [int(id) for id in event["tokens"]]
            stop = bool(event["stop"])
            counted = int(event["tokens_predicted"])
        except (KeyError, TypeError, ValueError) as error:
            raise self.endpoint._unreadable(repr(error)) from None
        if not self.made <= counted <= self.prefix.max_tokens:
            raise ProtocolError(self.endpoint.name, f"it counts {counted} tokens after {self.made}")
        self.made = counted
        self.prefilled, made = self.prefix_tokens, self.made - (self.index - self.first)
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
        why = why or next((one for one in ("eos", "word", "limit") if event.get(f"stopped_{one}")), None)
        if why not in ("eos", "word", "limit"):
            raise CutError(name, f"it stopped for no known reason: {self.endpoint._quote(repr(why))}")
        held = (self._empty + [None] * made)[: max(0, made - (why == "eos"))]
        texts = [""] * (len(held) - 1) + [str(event["content"])]
        tokens = self._numbered([Token(0, text, id) for text, id in zip(texts, held, strict=False)])
        self.made = self.index - self.first
        if why == "limit" and self.made < self.prefix.max_tokens:
            why = f"it stopped after {self.made} of {self.prefix.max_tokens} tokens: its context is full"
            raise CutError(name, why)
        self.done = True
        return tokens

    async def _completed(self, text: str, ids: list[int], made: int) -> list[Token]:
        """`made` tokens that share one text; all but the last were held back, and their ids have to be found out."""
        if len(ids) < made:
            if text.isascii():  # only the tokens of an unfinished character are held back
                raise ProtocolError(self.endpoint.name, f"{made - len(ids)} of its tokens have not come")
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
