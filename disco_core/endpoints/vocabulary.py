"""Shared by the endpoints for llama.cpp: fingerprints of vocabularies, chat templates, and prefixes as token ids."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from disco_core import checks
from disco_core.endpoints.base import Endpoint, Estimate, Prefix, Prompt, estimate, is_chat
from disco_core.endpoints.stop import sampling, stop_texts
from disco_core.errors import EndpointError, RefusedError

PROBE = (
    "The quick brown fox, 3.14159 and 2,718; don't\n\n\tindent  twice… naïve façade — Größe, Київ, Ελλάδα, "
    "東京で寿司, 안녕하세요, שלום, مرحبا, नमस्ते 🌱🚀👩‍🔬 def f(x): return {'a': [x ** 2, not None]} "
    "<|im_start|><|im_end|><|endoftext|><start_of_turn><end_of_turn><|eot_id|></s><think>"
)


class LlamaEndpoint(Endpoint):
    """What the endpoints for llama.cpp have in common: settings, the chat template, and prefixes as token ids.

    A subclass defines `_tokenized` and `_templated`, whose results are cached.
    """

    continues = True

    def _configure(self, temperature: Any, top_p: Any, stop: Any, prefix_cache: Any) -> None:
        self.temperature, self.top_p = sampling(self.name, temperature, top_p)
        self.stop = stop_texts(stop, f"{self.name}: stop")
        self.prefix_cache = checks.instance_of(prefix_cache, bool, f"{self.name}: prefix_cache")
        self._tokenize = lru_cache(maxsize=4096)(self._tokenized)
        self._template = lru_cache(maxsize=256)(self._templated)

    def _identify(self, vocabulary_size: int, context: int) -> None:
        """Set the context, and the fingerprint: the size, and a hash of the ids of `PROBE`, special tokens parsed."""
        self._size, self.context = vocabulary_size, context
        ids = list(self._tokenize(PROBE, False))
        self.vocabulary = f"{self._size}-{hashlib.sha256(repr(ids).encode()).hexdigest()[:16]}"

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt, with chat template and BOS if the model has one; an `Estimate` if that fails."""
        try:
            text = self.apply_chat_template(prompt)
            return len(self._tokenize(text, True)) if isinstance(text, str) else len(text)
        except EndpointError:  # for `generate` to report
            return Estimate(estimate(prompt))

    def apply_chat_template(self, prompt: Prompt) -> str | Sequence[int]:
        """The prompt as the model gets it: messages in its chat template; an EndpointError if that fails."""
        as_it_is: Any = prompt
        return self._template(json.dumps([dict(message) for message in prompt])) if is_chat(prompt) else as_it_is

    def _ids(self, prefix: Prefix) -> list[int]:
        """Ids of a prefix; RefusedError unless they are of this vocabulary, and fit the context with what may follow.

        Generated tokens are given as ids if all have one, and otherwise as text, which is appended to a prompt that
        is a text. So tokens of another vocabulary must come without their ids.
        """
        prompt, generated = self.apply_chat_template(prefix.prompt), prefix.generated
        known = [token.id for token in generated if token.id is not None]
        text = ""
        if len(known) < len(generated):
            known, text = [], "".join(token.text for token in generated)
        if isinstance(prompt, str):
            ids = [*self._tokenize(prompt + text, True), *known]
        else:
            ids = [*map(int, prompt), *(self._tokenize(text, False) if text else known)]
        needed, strange = len(ids) + prefix.max_tokens, [id for id in ids if not 0 <= id < self._size]
        if not ids:
            raise RefusedError(self.name, "the prompt must not be empty")
        if prefix.max_tokens < 1:
            raise RefusedError(self.name, f"max_tokens must be at least 1, got {prefix.max_tokens}")
        if strange:
            raise RefusedError(self.name, f"token ids must be from 0 to {self._size - 1}, got {strange[0]}")
        if self.context is not None and needed > self.context:
            raise RefusedError(self.name, f"prompt and answer need {needed} tokens of context, it has {self.context}")
        return ids

    def _tokenized(self, text: str, opening: bool) -> tuple[int, ...]:
        """Ids of a text; `opening`: it begins a prompt, and gets the model's BOS unless it has one."""
        raise NotImplementedError

    def _templated(self, messages: str) -> str:
        """Messages, as JSON, in the chat template of the model."""
        raise NotImplementedError
