"""Refinement of a prompt while the cloud prefills it: the tokens that say least are left out for the device.

P/D-Device (arXiv 2508.09035) refines the prompt from data the cloud already has; we do not know how it scores tokens.
Here a token's score is its self-information under the cloud's model, and the share rho with the highest scores is
kept in order. Symbols: l prompt length, rho the share kept.
"""

import re
from collections.abc import Sequence
from contextlib import closing, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.endpoints.llama_cpp import BATCH, model_file
from disco_core.errors import InputError

if TYPE_CHECKING:
    from llama_cpp import Llama

# after a full stop, whatever closes around it, and before the space that a tokenizer glues to the next word
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*(?=\s+\S)|(?<=[。！？])(?=\S)|(?=\n\s*\S)")


def kept_tokens(prompt_tokens: ArrayLike, rho: ArrayLike) -> Ints:
    """`ceil(rho l)`: tokens that a prompt of l tokens is refined to, at least 1; rho in (0, 1], arguments broadcast.

    >>> kept_tokens(100, 0.55).item()
    55
    """
    share = np.asarray(rho)
    if not np.all((share > 0) & (share <= 1)):
        raise InputError(f"rho must lie in (0, 1], got {rho!r:.80}")
    # a product that is whole but for its rounding, as 0.55 * 100 is, must not cost a token
    exact = np.asarray(prompt_tokens) * share
    kept: Ints = np.ceil(exact * (1 - 1e-12)).astype(np.int64)
    return kept


def keep(scores: ArrayLike, rho: float, protected: ArrayLike | None = None) -> Ints:
    """Places of the tokens to keep, ascending: `ceil(rho l)`, all that are protected and the highest scores.

    scores      of each token, shape (l,), at least one, inf allowed
    rho         share of the tokens to keep, in (0, 1]
    protected   tokens that must not go, bool, shape (l,); if they are more than the share, just they are kept

    Of equal scores the earlier token is kept. InputError for anything else.

    >>> keep([5.0, 1.0, 3.0, 0.5], 0.5, [False, False, False, True]).tolist()
    [0, 3]
    """
    score, share = checks.numbers(scores, "scores"), checks.number(rho, "rho", 0.0, 1.0, above=True)
    if score.ndim != 1:
        raise InputError(f"scores must be one-dimensional, got shape {score.shape}")
    safe = np.zeros(score.size, np.bool_) if protected is None else np.asarray(protected)
    if safe.shape != score.shape or safe.dtype != np.bool_:
        raise InputError(f"protected must be {score.size} bools, one per token, got {safe.dtype} {safe.shape}")
    best_first = np.lexsort((-score, ~safe))  # stable: of equal scores the earlier
    kept: Ints = np.sort(best_first[: max(int(kept_tokens(score.size, share)), int(safe.sum()))])
    return kept


def self_information(model: "Llama | Path | str", ids: Sequence[int]) -> Floats:
    """`-log p(token | all before it)` in nats under a llama.cpp model, shape (l,).

    The first token has nothing before it and gets inf: it counts as the most informative.

    model   a GGUF file, which one thread then runs, or a model loaded from one, whose context is used and left empty
    ids     the prompt in the model's vocabulary, at least one token; it has to fit the context

    Logits are looked at `BATCH` positions at a time, so memory does not grow with the prompt but for the cache.
    InputError for a path without a model, an id outside the vocabulary, or a prompt that does not fit.
    """
    if isinstance(model, Path | str):
        with closing(_load(model_file("refine", model), len(ids))) as llama:
            return self_information(llama, ids)
    tokens = [int(id) for id in ids]
    if not 1 <= len(tokens) <= model.n_ctx():
        raise InputError(f"ids must be from 1 to {model.n_ctx()} tokens, the model's context, got {len(tokens)}")
    strange = next((id for id in tokens if not 0 <= id < model.n_vocab()), None)
    if strange is not None:
        raise InputError(f"ids must be from 0 to {model.n_vocab() - 1}, got {strange}")
    scores = np.full(len(tokens), np.inf)
    model.reset()
    model._ctx.kv_cache_clear()
    step = min(BATCH, model.n_batch)
    for at in range(0, len(tokens), step):
        batch = tokens[at : at + step]
        # not `eval`: asked for all logits, it would hold a row of the whole vocabulary for every place of the context
        model._batch.set_batch(batch=batch, n_past=at, logits_all=True)
        model._ctx.decode(model._batch)
        logits = np.ctypeslib.as_array(model._ctx.get_logits(), shape=(len(batch), model.n_vocab()))
        following = tokens[at + 1 : at + step + 1]
        scores[at + 1 : at + step + 1] = _surprise(logits[: len(following)], following)
    model._ctx.kv_cache_clear()
    return scores


def protected_spans(pieces: Sequence[tuple[str, bool]], model: "Llama") -> tuple[Ints, NDArray[np.bool_]]:
    """Ids of a prompt given in pieces of (text, protected), and which of them are protected, both of shape (l,).

    The pieces are tokenised as one text, as an end would, marks of the template as the single tokens they are; so
    the ids do not depend on where the pieces part, and a token that reaches into a protected piece is protected.
    What the tokenizer puts before the text, such as a BOS, is protected as well. A vocabulary alone will do as
    model. InputError for an empty prompt, or a vocabulary whose tokens do not spell the text.
    """
    from llama_cpp import llama_token_to_piece

    sizes = [len(text.encode()) for text, _ in pieces]
    whole = "".join(text for text, _ in pieces).encode()
    if not whole:
        raise InputError("the prompt must not be empty")
    ids = model.tokenize(whole, add_bos=True, special=True)
    if ids[:2] == [model.token_bos()] * 2:
        ids = ids[1:]  # the prompt as built has a BOS already
    # with no room to write to, a piece tells its length as a negative number
    spelt = np.array([-llama_token_to_piece(model._model.vocab, id, None, 0, 0, True) for id in ids])
    ends = np.cumsum(spelt) - (spelt.sum() - len(whole))
    if spelt.sum() < len(whole):
        raise InputError(f"the vocabulary's tokens spell {spelt.sum()} bytes of a prompt of {len(whole)}")
    safe = np.repeat([protected for _, protected in pieces], sizes)
    protected_before = np.concatenate([[0], np.cumsum(safe)])
    starts = np.maximum(ends - spelt, 0)
    mask = (ends <= 0) | (protected_before[np.maximum(ends, 0)] > protected_before[starts])
    return np.array(ids, np.int64), mask


def split_question(words: str) -> tuple[str, str]:
    """A user's words as (body, last sentence); the two joined are the words, and a single sentence has no body.

    A rule of thumb: a sentence ends at a full stop, an exclamation or a question mark before white space, or at a
    line's end. After an abbreviation it finds too short a last sentence.

    >>> split_question("The sky was red. Why?")
    ('The sky was red.', ' Why?')
    """
    ends = [found.end() for found in _SENTENCE.finditer(words)]
    cut = ends[-1] if ends and words[: ends[-1]].strip() else 0
    return words[:cut], words[cut:]


def refine(pieces: Sequence[tuple[str, bool]], model: "Llama", rho: float) -> list[int]:
    """The prompt given in pieces of (text, protected) as ids of the share rho of its tokens that says most.

    In order, all that is protected among them. Errors are those of `protected_spans`, `self_information`, `keep`.
    """
    ids, protected = protected_spans(pieces, model)
    scores = np.zeros(ids.size) if rho == 1 else self_information(model, ids.tolist())  # all are kept: none is read
    kept: list[int] = ids[keep(scores, rho, protected)].tolist()
    return kept


def _surprise(logits: NDArray[np.float32], ids: Sequence[int]) -> Floats:
    """`log sum exp(logits) - logits[id]` of each row, shape (rows,)."""
    if not len(ids):
        return np.empty(0)
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    surprise: Floats = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(ids)), ids]
    return surprise


def _load(path: Path, context: int) -> "Llama":
    from llama_cpp import Llama

    threads = {"n_threads": 1, "n_threads_batch": 1}  # more of them than free cores wait for each other
    batch = {"n_batch": BATCH, "n_ubatch": BATCH}
    with redirect_stderr(StringIO()):  # llama.cpp warns of settings that are meant as they are
        return Llama(model_path=str(path), n_ctx=max(context, 1), verbose=False, **batch, **threads)
