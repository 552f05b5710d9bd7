"""The prompts that measure a pair: the reader's or the project's, as the messages that both endpoints get."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifact.data import traces
from artifact.errors import ArtifactError
from artifact.pair import records
from disco_core.endpoints.base import Message, checked_prompt, words
from disco_core.errors import DiscoError

Messages = Sequence[Message]
Count = Callable[[Messages], int]


def load(path: Path | None) -> list[Messages]:
    """The prompts of a csv with a column `prompt`, or of JSON lines with `prompt` or `messages`; without one ours.

    ArtifactError, one line that starts with the path, for a file without prompts and for a prompt that is none.
    """
    if path is None:
        return [_user(text) for text in traces.table("prompts")["prompt"]]
    try:
        rows = records.load(path)
        found = [_prompt(row, number) for number, row in enumerate(rows, 1)]
        prompts = [prompt for prompt in found if prompt is not None]
        if not prompts:
            columns = ", ".join(sorted(set().union(*rows))[:12])
            raise ArtifactError(f"no prompts: a column prompt or messages is needed, there are {columns or 'none'}")
        return prompts
    except DiscoError as error:
        raise ArtifactError(f"{path}: {error}") from None


def texts_of_length(prompts: Sequence[Messages], lengths: Sequence[int], count: Count) -> list[Messages]:
    """For each length a prompt of about so many tokens: the prompts' words, cut or joined.

    It has at least one word, so that a length below that of the empty chat template is not reached.
    """
    found = []
    for number, length in enumerate(lengths):
        order = np.random.default_rng([len(prompts), number]).permutation(len(prompts))
        text: list[str] = []
        while not text or count(_user(" ".join(text))) < length:
            text += [word for k in order for word in words(prompts[k]).split()] or ["and"]
        low, high = 1, len(text)  # the most words whose prompt is not longer
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(_user(" ".join(text[:middle]))) <= length else (low, middle - 1)
        found.append(_user(" ".join(text[:low])))
    return found


def _user(text: Any) -> Messages:
    return [{"role": "user", "content": str(text)}]


def _prompt(row: Mapping[str, Any], number: int) -> Messages | None:
    """The prompt in a row; None in a row without one."""
    value = row.get("messages") if records.known(row.get("messages")) else row.get("prompt")
    if not records.known(value):
        return None
    if isinstance(value, str):
        value = _user(value)
    try:
        prompt = checked_prompt(value)
        if not isinstance(prompt, list) or not isinstance(prompt[0], dict):
            raise ArtifactError(f"a text or messages are needed, got {value!r:.60}")
        return prompt
    except DiscoError as error:
        raise ArtifactError(f"row {number}: {error}") from None
