"""Any server that speaks OpenAI's API: vLLM, llama.cpp, Ollama, LiteLLM's proxy, DeepSeek, Mistral, OpenAI."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from disco_core import checks
from disco_core.endpoints.base import Prefix, Prompt, Token, estimate, is_chat, words
from disco_core.endpoints.chunks import ChunkedAnswer
from disco_core.endpoints.http import Remote
from disco_core.endpoints.stop import sampling, stop_texts
from disco_core.errors import EndpointError, InputError, ProtocolError, RefusedError

Way = Literal["continue_final_message", "prefix", "plain", "completions"]  # in the order that `probe` tries them
Continuation = Literal["none", "probe"] | Way
OPENAI = "https://api.openai.com/v1"
# by address: parameters of chat that have another name there, or are refused (None)
AZURE = (".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com")
RENAMED: dict[tuple[str, ...], dict[str, str | None]] = {
    (".openai.com", *AZURE): {"max_tokens": "max_completion_tokens"},
    (".mistral.ai",): {"seed": "random_seed", "stream_options": None},
    (".generativelanguage.googleapis.com",): {"seed": None},
}
# for `probe`: a new beginning would not be these words, so that it is told from an echo
QUESTION, BEGINNING = "Count from one to ten, in words.", "Let us count: one, two, three, four,"
LIMITS = ("max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens", "n_predict", "num_predict")
# parameters of the request that are no option, and what sets them
SET_ELSEWHERE = dict.fromkeys(LIMITS, "`stream`'s max_tokens") | {
    "seed": "`stream`'s seed",
    "random_seed": "`stream`'s seed",
    "messages": "`stream`'s prompt",
    "prompt": "`stream`'s prompt",
    "stop": "the endpoint's stop",
    "model": "the endpoint's model",
    "stream": "the endpoint: it always streams",
}
MOST_STOPS = 4  # texts that OpenAI's API takes


class OpenAIEndpoint(Remote):
    """An endpoint behind an OpenAI-compatible server; it streams, and retries nothing but a stale connection.

    model         name of the model on the server
    base_url      by default the environment's OPENAI_BASE_URL, or else OpenAI's
    api_key       by default OPENAI_API_KEY; needed for OpenAI's address alone. It appears in no message and no record
    continuation  how the server continues an open assistant turn:
                  "none"                    it cannot, and a prefix with generated tokens is refused
                  "completions"             raw completions of a prompt that is a text, also from the answer's start
                  "prefix"                  a last assistant message marked `prefix` (DeepSeek, Mistral)
                  "continue_final_message"  a last assistant message that stays open (vLLM, SGLang, llama.cpp)
                  "plain"                   a last assistant message, without a flag (Groq, OpenRouter, Ollama)
                  "probe"                   unknown: as "none" until `probe` has found one of these that works
    template      the format of prompts that are texts, with `{prompt}` for the user's words: the chat API takes only
                  these. None: the whole prompt is the user's message
    count_tokens  function that counts the tokens of a text, or of the contents of messages; by default an estimate of
                  four bytes a token, since the API cannot count them
    context       tokens of prompt and answer that fit, None where unknown
    temperature   0 is greedy; `top_p` None: the server's default
    stop          one or several texts: what this endpoint generates ends before one, also where that began in the
                  text it continues
    deadline_s    seconds without a byte after which it has failed
    options       more parameters of the request, such as {"logprobs": True}; None removes one
    echoes        whether it repeats the text that it continues, which is dropped; None until `probe` knows: only a
                  longer text that is no repetition is then taken for an echo, or refused as a new beginning
    usage         (prompt, completion) tokens of each finished answer, as the server billed them

    A piece of text is one token, or as many as its logprobs list. What is billed beyond that, such as hidden
    reasoning, is in the generation's `undelivered`.
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
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        deadline_s: float = 30.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        key = api_key or os.environ.get("OPENAI_API_KEY")
        name = f"openai:{checks.instance_of(model, str, 'model')}" if name is None else name
        super().__init__(name, url, key, deadline_s, {"trust_env": True, "follow_redirects": True})
        self.model, self.base_url = model, self.failures.address
        host = f".{urlsplit(url).hostname}"
        if self.failures.key is None and host.endswith(".openai.com"):
            raise RefusedError(name, "no key: set OPENAI_API_KEY, or pass api_key")
        self._renamed = next((names for suffixes, names in RENAMED.items() if host.endswith(suffixes)), {})
        ways = get_args(Way)
        if continuation not in (allowed := (*ways, "none", "probe")):
            raise InputError(f"{name}: continuation must be one of {', '.join(allowed)}, got {continuation!r:.80}")
        self.continuation, self.continues, self.probed = continuation, continuation in ways, dict[str, str]()
        self.echoes: bool | None = None
        self._ways: tuple[Way, ...] = (continuation,) if continuation in ways else ways
        if template is not None and checks.instance_of(template, str, f"{name}: template").count("{prompt}") != 1:
            raise InputError(f"{name}: template must contain {{prompt}} once, got {template!r:.80}")
        self.template, self.vocabulary = template, name  # ids are never exchanged
        self.context = None if context is None else checks.count(context, f"{name}: context")
        self.temperature, self.top_p = sampling(name, temperature, top_p)
        self.stop = stop_texts(stop, f"{name}: stop")
        try:
            self.options = json.loads(json.dumps(dict(options or {})))
        except (TypeError, ValueError):
            raise InputError(f"{name}: options must be a mapping that JSON can hold, got {options!r:.80}") from None
        if self.options.get("n") not in (None, 1):
            raise InputError(f"{name}: options must be for one answer, got n = {self.options['n']!r:.80}")
        for option, value in self.options.items():
            if option in SET_ELSEWHERE and value is not None:
                raise InputError(f"{name}: options must be without {option}, which is set by {SET_ELSEWHERE[option]}")
        if not (count_tokens is None or callable(count_tokens)):
            raise InputError(f"{name}: count_tokens must be a function, got {count_tokens!r:.80}")
        self._count_tokens, self.usage = count_tokens, list[tuple[int, int]]()

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt; an estimate unless `count_tokens` was given."""
        if self._count_tokens and (isinstance(prompt, str) or is_chat(prompt)):
            return self._count_tokens(words(prompt))
        return estimate(prompt)

    def generate(self, prefix: Prefix) -> ChunkedAnswer:
        """The tokens that follow, up to the end of the turn; closing closes the connection."""
        return self._answer(prefix, self.continuation)

    async def probe(self) -> Continuation:
        """Ask the server to continue a fixed beginning, in each way or the given one, and use the first that works.

        It returns that way, or "none". `probed` has what came of each: an echo of the beginning is dropped and no
        harm, an answer that starts over or is refused is.
        """
        refused = True
        self.continuation, self.continues, self.echoes = "none", False, None
        for way in self._ways:
            if way == "completions" and not (self.template or refused or len(self._ways) == 1):
                continue  # with it, prompts would have to be texts in the model's chat template
            failure = await self._continues_by(way)
            if failure is None:
                self.continuation, self.continues = way, True
                break
            refused = refused and isinstance(failure, RefusedError)
        return self.continuation

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, {self.base_url!r}, continuation={self.continuation!r})"

    async def _continues_by(self, way: Way) -> EndpointError | None:
        """Why a way of continuing does not work; None if it does."""
        question: Prompt = [{"role": "user", "content": QUESTION}]
        if way == "completions":
            question = (self.template or "{prompt}\n").replace("{prompt}", QUESTION)
        answer, text, failure = self._answer(Prefix(question, (Token(0, BEGINNING),), 16), way), "", None
        try:
            async for token in answer:
                text += "" if token.reasoning else token.text
        except EndpointError as error:
            failure = error
        if re.match(r"\W*(five|5)\b", text.lower()):
            self.echoes = answer.seam.echoed
            self.probed[way] = "works; the echo of the beginning is dropped" if self.echoes else "works"
            return None
        failure = failure or ProtocolError(self.name, f"it starts over: {text[:60]!r}")
        self.probed[way] = str(failure)
        return failure

    def _answer(self, prefix: Prefix, way: Continuation) -> ChunkedAnswer:
        path = "/completions" if way == "completions" else "/chat/completions"
        return ChunkedAnswer(self, path, partial(self._request, prefix, way), prefix, self.usage, self.echoes)

    async def _request(self, prefix: Prefix, way: Continuation) -> dict[str, Any]:
        raw, prompt = way == "completions", prefix.prompt
        if not prompt or not (isinstance(prompt, str) or (is_chat(prompt) and not raw)):
            wanted = "a text" if raw else "a text or messages"
            raise RefusedError(self.name, f"the prompt must be {wanted}, got {prompt!r:.40}")
        if prefix.max_tokens < 1:
            raise RefusedError(self.name, f"max_tokens must be at least 1, got {prefix.max_tokens}")
        if prefix.generated and way in ("none", "probe"):
            raise RefusedError(self.name, "it cannot continue an open assistant turn")
        needed = self.count(prompt) + len(prefix.generated) + prefix.max_tokens
        if self.context is not None and needed > self.context:
            raise RefusedError(self.name, f"prompt and answer need {needed} tokens of context, it has {self.context}")
        text = "".join(token.text for token in prefix.generated)
        asked = {
            "model": self.model,
            "max_tokens": prefix.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": list(self.stop) if 0 < len(self.stop) <= MOST_STOPS else None,
            "seed": prefix.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        asked |= {"prompt": f"{prompt}{text}"} if raw else self._chat(prompt, text, way)
        names = {key: key for key in asked} | ({} if raw else self._renamed)
        request = {name: asked[key] for key, name in names.items() if name} | self.options
        return {key: value for key, value in request.items() if value is not None}

    def _chat(self, prompt: Any, generated: str, way: Continuation) -> dict[str, Any]:
        """The prompt as messages, and the open turn as this server wants it."""
        messages = [{"role": "user", "content": self._asked(prompt)}] if isinstance(prompt, str) else [*prompt]
        if not generated:
            return {"messages": messages}
        turn = {"role": "assistant", "content": generated} | ({"prefix": True} if way == "prefix" else {})
        flags = {"add_generation_prompt": False, "continue_final_message": True}
        return {"messages": [*messages, turn]} | (flags if way == "continue_final_message" else {})

    def _asked(self, prompt: str) -> str:
        """The user's words in a prompt that has the format of the template."""
        before, after = (self.template or "{prompt}").split("{prompt}")
        if not (prompt.startswith(before) and prompt.endswith(after) and len(prompt) >= len(before + after)):
            raise RefusedError(self.name, f"the prompt does not have the format of its template: {prompt!r:.60}")
        return prompt[len(before) : len(prompt) - len(after)]
