"""Refinement of a prompt while the cloud prefills it: the least informative tokens are left out for the device.

P/D-Device (arXiv 2508.09035) refines the prompt from data the cloud already has; how it scores tokens is not known
to us. Here a token's score is its self-information under the cloud's model, and the share rho with the highest scores
is kept in order. Symbols: l prompt length, rho the share kept.
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
    # a product that is an integer but for its rounding, as 0.55 * 100, must not cost a token
    exact = np.asarray(prompt_tokens) * share
    kept: Ints = np.ceil(exact * (1 - 1e-12)).astype(np.int64)
    return kept


def keep(scores: ArrayLike, rho: float, protected: ArrayLike | None = None) -> Ints:
    """Indices of the `ceil(rho l)` tokens to keep, ascending: all protected ones, then those of highest score.

    scores      of each token, shape (l,), at least one, inf allowed
    rho         share of the tokens to keep, in (0, 1]
    protected   tokens that must stay, bool, shape (l,); if they exceed the share, only they are kept

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
    """`-log p(token | tokens before it)` in nats under a llama.cpp model, shape (l,).

    The first token has nothing before it and gets inf: it counts as the most informative.

    model   a GGUF file, which is run with one thread, or a loaded model, whose context is used and left empty
    ids     the prompt in the model's vocabulary, at least one token; it has to fit the context

    Logits are computed for `BATCH` positions at a time, so that of all memory only the cache grows with the prompt.
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
        # not `eval`: with all logits it would keep a row of the whole vocabulary for every position of the context
        model._batch.set_batch(batch=batch, n_past=at, logits_all=True)
        model._ctx.decode(model._batch)
        logits = np.ctypeslib.as_array(model._ctx.get_logits(), shape=(len(batch), model.n_vocab()))
        following = tokens[at + 1 : at + step + 1]
        scores[at + 1 : at + step + 1] = _surprise(logits[: len(following)], following)
    model._ctx.kv_cache_clear()
    return scores


def protected_spans(pieces: Sequence[tuple[str, bool]], model: "Llama") -> tuple[Ints, NDArray[np.bool_]]:
    """Ids of a prompt given in pieces of (text, protected), and which of them are protected, both of shape (l,).

    The pieces are tokenised as one text, as an endpoint would, with special tokens of the template as single tokens.
    So the ids do not depend on where the pieces are split, and a token that reaches into a protected piece is
    protected. So is what the tokenizer puts before the text, such as a BOS. The model may be loaded as vocabulary
    only. InputError for an empty prompt, or a vocabulary whose tokens do not spell the text.
    """
    from llama_cpp import llama_token_to_piece

    sizes = [len(text.encode()) for text, _ in pieces]
    whole = "".join(text for text, _ in pieces).encode()
    if not whole:
        raise InputError("the prompt must not be empty")
    ids = model.tokenize(whole, add_bos=True, special=True)
    if ids[:2] == [model.token_bos()] * 2:
        ids = ids[1:]  # the prompt has a BOS already
    # without a buffer to write to, the result is the length as a negative number
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
    """A text as (body, last sentence); joined they are the text again, and a single sentence has no body.

    A rule of thumb: a sentence ends at a full stop, an exclamation or a question mark before white space, or at the
    end of a line. If there is an abbreviation in the last sentence, the result is too short.

    >>> split_question("The sky was red. Why?")
    ('The sky was red.', ' Why?')
    """
    ends = [found.end() for found in _SENTENCE.finditer(words)]
    cut = ends[-1] if ends and words[: ends[-1]].strip() else 0
    return words[:cut], words[cut:]


def refine(pieces: Sequence[tuple[str, bool]], model: "Llama", rho: float) -> list[int]:
    """Ids of the refined prompt, in order: the share rho of the tokens of all pieces of (text, protected).

    All protected tokens are kept, then the most informative ones. Errors of `protected_spans`,
    `self_information`, `keep`.
    """
    ids, protected = protected_spans(pieces, model)
    scores = np.zeros(ids.size) if rho == 1 else self_information(model, ids.tolist())  # no scores needed
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

    threads = {"n_threads": 1, "n_threads_batch": 1}  # threads without a free core only wait
    batch = {"n_batch": BATCH, "n_ubatch": BATCH}
    with redirect_stderr(StringIO()):  # llama.cpp warns of settings that are intended
        return Llama(model_path=str(path), n_ctx=max(context, 1), verbose=False, **batch, **threads)
