"""Shared by llama.cpp endpoints: fingerprints of vocabularies, chat templates, and the prefix to tokenise."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from disco_core.endpoints.base import Prefix, Prompt, Token, is_chat
from disco_core.errors import RefusedError

PROBE = (
    "The quick brown fox, 3.14159 and 2,718; don't\n\n\tindent  twice… naïve façade — Größe, Київ, Ελλάδα, "
    "東京で寿司, 안녕하세요, שלום, مرحبا, नमस्ते 🌱🚀👩‍🔬 def f(x): return {'a': [x ** 2, not None]} "
    "<|im_start|><|im_end|><|endoftext|><start_of_turn><end_of_turn><|eot_id|></s><think>"
)


def fingerprint(vocabulary_size: int, probe_ids: Sequence[int]) -> str:
    """Identifies a vocabulary: its size, and a hash of the ids it gives to `PROBE` with special tokens parsed."""
    return f"{vocabulary_size}-{hashlib.sha256(repr(list(probe_ids)).encode()).hexdigest()[:16]}"


def apply_chat_template(prompt: Prompt, template: Callable[[str], str]) -> str | Sequence[int]:
    """The prompt as the model gets it: a text or ids unchanged, messages (as JSON) in its chat template."""
    as_it_is: Any = prompt
    return template(json.dumps([dict(message) for message in prompt])) if is_chat(prompt) else as_it_is


def prompt_segments(prompt: str | Sequence[int], generated: Sequence[Token]) -> list[str | list[int]]:
    """The prefix in segments to tokenise and join: ids where they are known, otherwise text.

    Generated tokens are given as ids if all have one, and otherwise as text, which is appended to a prompt that is a
    text. So tokens of another vocabulary must come without their ids.
    """
    given = prompt if isinstance(prompt, str) else [int(id) for id in prompt]
    ids = [token.id for token in generated if token.id is not None]
    if len(ids) == len(generated):
        return [given, ids]
    text = "".join(token.text for token in generated)
    return [given + text] if isinstance(given, str) else [given, text]


def validate_prompt(name: str, prefix: Prefix, ids: Sequence[int], vocabulary_size: int, context: int | None) -> None:
    """RefusedError unless the ids are of this vocabulary and fit the context with the tokens that may follow."""
    if not ids:
        raise RefusedError(name, "the prompt must not be empty")
    if prefix.max_tokens < 1:
        raise RefusedError(name, f"max_tokens must be at least 1, got {prefix.max_tokens}")
    strange = next((id for id in ids if not 0 <= id < vocabulary_size), None)
    if strange is not None:
        raise RefusedError(name, f"token ids must be from 0 to {vocabulary_size - 1}, got {strange}")
    needed = len(ids) + prefix.max_tokens
    if context is not None and needed > context:
        raise RefusedError(name, f"prompt and answer need {needed} tokens of context, it has {context}")
