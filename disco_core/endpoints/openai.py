"""Any server that speaks OpenAI's API (vLLM, llama.cpp, DeepSeek, OpenAI), on the `openai` package."""

import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal, get_args

from disco_core import checks
from disco_core.endpoints.base import Message, Prefix, Prompt, Token, estimate, is_chat, words
from disco_core.endpoints.http import Remote, stale, watched
from disco_core.errors import CutError, EndpointError, InputError, ProtocolError, RefusedError

Continuation = Literal["none", "completions", "prefix", "continue_final_message"]
OPENAI = "https://api.openai.com/v1"


class OpenAIEndpoint(Remote):
    """An endpoint behind an OpenAI-compatible server; it streams, and retries nothing but a stale connection.

    model         name of the model on the server
    base_url      by default the environment's OPENAI_BASE_URL, or else OpenAI's
    api_key       by default OPENAI_API_KEY; it appears in no message, no repr and no record
    continuation  how the server continues an open assistant turn:
                  "none"                    it cannot, and a prefix with generated tokens is refused
                  "completions"             raw completions of a prompt that is a text, also from the answer's start
                  "prefix"                  a last assistant message marked `prefix` (DeepSeek)
                  "continue_final_message"  a last assistant message that stays open (vLLM, llama.cpp)
    template      the format of prompts that are texts, with `{prompt}` for the user's words: the chat API takes only
                  these. None: the whole prompt is the user's message
    count_tokens  function that counts the tokens of a text, or of the contents of messages; by default an estimate of
                  four bytes a token, since the API cannot count them
    context       tokens of prompt and answer that fit, None where unknown
    deadline_s    seconds without a byte after which it has failed
    options       more parameters of the request, such as {"logprobs": True}; None removes one
    usage         (prompt, completion) tokens of each finished answer, as the server billed them

    A chunk counts as many tokens as its logprobs or its usage say, and as one where neither is sent. RefusedError
    without a key, or without the package `openai`, which the first endpoint imports.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        continuation: Continuation = "none",
        template: str | None = None,
        count_tokens: Callable[[str], int] | None = None,
        context: int | None = None,
        name: str | None = None,
        temperature: float = 0.0,
        deadline_s: float = 30.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, key = checks.instance_of(model, str, "model"), api_key or os.environ.get("OPENAI_API_KEY")
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        super().__init__(name or f"openai:{model}", url, key, deadline_s)
        self.base_url = self._address
        if self._key is None:
            raise RefusedError(self.name, "no key: set OPENAI_API_KEY, or pass api_key")
        if continuation not in get_args(Continuation):
            raise InputError(f"continuation must be one of {', '.join(get_args(Continuation))}, got {continuation!r}")
        if template is not None and checks.instance_of(template, str, "template").count("{prompt}") != 1:
            raise InputError(f"template must contain {{prompt}} once, got {template!r:.80}")
        self.continuation, self.template = continuation, template
        self.continues = continuation != "none"
        self.vocabulary = self.name  # ids are never exchanged
        self.context = None if context is None else checks.count(context, "context")
        self.temperature = checks.number(temperature, "temperature")
        if not isinstance(options, Mapping | None):
            raise InputError(f"options must be a mapping, got {options!r:.80}")
        self.options, self.usage = dict(options or {}), list[tuple[int, int]]()
        if not (count_tokens is None or callable(count_tokens)):
            raise InputError(f"count_tokens must be a function, got {count_tokens!r:.80}")
        self._count_tokens = count_tokens
        self._package = _package(self.name)

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt; an estimate unless `count_tokens` was given."""
        if self._count_tokens and (isinstance(prompt, str) or is_chat(prompt)):
            return self._count_tokens(words(prompt))
        return estimate(prompt)

    async def generate(self, prefix: Prefix) -> AsyncGenerator[Token, None]:
        """The tokens that follow, up to the end of the turn; closing closes the connection."""
        request = self._request(prefix)
        stream, failed = None, None
        chunks = _Chunks(self, len(prefix.generated))
        async with AsyncExitStack() as stack:
            try:
                stream = await self._send(request, stack)
                async for chunk in stream:
                    for token in chunks.read(chunk):
                        yield token
            except EndpointError as error:
                failed = error
            except Exception as error:
                failed = self._translated(error, begun=stream is not None)
        if failed:  # raised here so that the package's own error does not become its context
            raise failed
        chunks.finish()
        if chunks.billed:
            self.usage.append(chunks.billed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, {self.base_url!r}, continuation={self.continuation!r})"

    def _new_client(self) -> Any:
        http = self._package.DefaultAsyncHttpxClient(event_hooks={"request": [watched]})
        options = {"max_retries": 0, "timeout": self.deadline_s, "http_client": http}
        return self._package.AsyncOpenAI(api_key=self._key, base_url=self.base_url, **options)

    async def _send(self, request: dict[str, Any], stack: AsyncExitStack) -> Any:
        """The stream of chunks; the request is sent again, on a new connection, if an idle one had been dropped."""

        async def send(client: Any) -> Any:
            where = client.completions if self.continuation == "completions" else client.chat.completions
            stream = await where.create(**request)
            stack.push_async_callback(stream.close)
            kind = stream.response.headers.get("content-type", "none")
            if not kind.startswith("text/event-stream"):
                raise ProtocolError(self.name, f"it answered with {self._quote(kind)}, not with a stream of events")
            return stream

        try:
            return await send(self._pool())
        except self._package.APIConnectionError as error:
            if not stale(error.__cause__):
                raise
            self.stale_retries += 1
        return await send(await stack.enter_async_context(self._new_client()))

    def _request(self, prefix: Prefix) -> dict[str, Any]:
        raw, prompt = self.continuation == "completions", prefix.prompt
        if not prompt or not (isinstance(prompt, str) or (is_chat(prompt) and not raw)):
            wanted = "a text" if raw else "a text or messages"
            raise RefusedError(self.name, f"the prompt must be {wanted}, got {prompt!r:.40}")
        if prefix.max_tokens < 1:
            raise RefusedError(self.name, f"max_tokens must be at least 1, got {prefix.max_tokens}")
        if prefix.generated and not self.continues:
            raise RefusedError(self.name, "it cannot continue an open assistant turn")
        needed = self.count(prompt) + len(prefix.generated) + prefix.max_tokens
        if self.context is not None and needed > self.context:
            raise RefusedError(self.name, f"prompt and answer need {needed} tokens of context, it has {self.context}")
        limit = "max_completion_tokens" if self.base_url == OPENAI and not raw else "max_tokens"
        request: dict[str, Any] = {
            "model": self.model,
            limit: prefix.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if prefix.seed is not None:
            request["seed"] = prefix.seed
        text = "".join(token.text for token in prefix.generated)
        request |= {"prompt": f"{prompt}{text}"} if raw else self._chat(prompt, text)
        return {key: value for key, value in (request | self.options).items() if value is not None}

    def _chat(self, prompt: str | Sequence[Message], generated: str) -> dict[str, Any]:
        """The prompt as messages, and the open turn as this server wants it."""
        messages: list[dict[str, Any]] = (
            [{"role": "user", "content": self._asked(prompt)}] if isinstance(prompt, str) else [*map(dict, prompt)]
        )
        if not generated:
            return {"messages": messages}
        turn: dict[str, Any] = {"role": "assistant", "content": generated}
        if self.continuation == "prefix":
            return {"messages": [*messages, turn | {"prefix": True}]}
        return {
            "messages": [*messages, turn],
            "extra_body": {"add_generation_prompt": False, "continue_final_message": True},
        }

    def _asked(self, prompt: str) -> str:
        """The user's words in a prompt that has the format of the template."""
        before, after = (self.template or "{prompt}").split("{prompt}")
        if not (prompt.startswith(before) and prompt.endswith(after) and len(prompt) >= len(before + after)):
            raise RefusedError(self.name, f"the prompt does not have the format of its template: {prompt!r:.60}")
        return prompt[len(before) : len(prompt) - len(after)]

    def _translated(self, error: Exception, *, begun: bool) -> EndpointError:
        """An error of the package as an EndpointError, in one line and without the key."""
        openai = self._package
        if isinstance(error, openai.APIStatusError):
            message = error.body.get("message") if isinstance(error.body, dict) else None
            return self._refusal(error.status_code, error.response.headers.get("retry-after"), message or "")
        if isinstance(error, openai.APIConnectionError):
            return self._broken(error.__cause__ or error)
        if isinstance(error, openai.APIError):
            return CutError(self.name, self._quote(error.message, 300))
        if isinstance(error, ValueError | TypeError | AttributeError):
            return self._unreadable(error)
        if begun:
            return self._broken(error)
        return RefusedError(self.name, self._quote(f"{type(error).__name__}: {error}", 300))


def _package(name: str) -> Any:
    """The package with the modules a request needs: the import takes a second or two, so no answer waits for it."""
    try:
        import openai
        import openai.resources.chat.completions
        import openai.resources.completions
    except ImportError:
        raise RefusedError(name, "it needs the package openai") from None
    return openai


class _Chunks:
    """Tokens from the chunks of one answer; a chunk with only a role, an empty text or a usage has none."""

    def __init__(self, endpoint: OpenAIEndpoint, first: int) -> None:
        self.endpoint, self.index, self.counted = endpoint, first, 0
        self.reason: str | None = None
        self.billed: tuple[int, int] | None = None

    def read(self, chunk: Any) -> list[Token]:
        counted = self.counted
        if chunk.usage:
            self.billed = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            self.counted = chunk.usage.completion_tokens
        if not chunk.choices:
            return []
        choice = chunk.choices[0]
        self.reason = choice.finish_reason or self.reason
        text = choice.delta.content if hasattr(choice, "delta") else choice.text
        if not text:
            return []
        texts = self._texts(choice, text, self.counted - counted if chunk.usage else 1)
        self.counted = max(self.counted, counted + len(texts))
        self.index += len(texts)
        return [Token(self.index - len(texts) + i, one) for i, one in enumerate(texts)]

    def finish(self) -> None:
        """CutError unless the server reported that the answer is complete."""
        if self.reason is None:
            raise CutError(self.endpoint.name, "the stream ended without a finish reason")
        if self.reason not in ("stop", "length"):
            raise CutError(self.endpoint.name, f"it stopped early: {self.endpoint._quote(self.reason)}")

    @staticmethod
    def _texts(choice: Any, text: str, counted: int) -> list[str]:
        """The chunk's text by token: split as in its logprobs, or else all of it in the last token."""
        listed = getattr(choice.logprobs, "content", None) or getattr(choice.logprobs, "tokens", None) or []
        texts = [str(one.get("token") if isinstance(one, dict) else getattr(one, "token", one)) for one in listed]
        if "".join(texts) == text:
            return texts
        return [""] * (max(len(listed) or counted, 1) - 1) + [text]
