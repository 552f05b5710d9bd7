"""Prompt compression: how much each token of a prompt tells, and which tokens are kept.

A token's score is its self-information, `-log p(token | tokens before it)`: under a language model, which costs a
prefill (`self_information`), or under the frequencies of tokens and pairs of tokens in calibration text, which costs
next to nothing (`Frequencies`). The tokens of highest score are kept in order, and with them those that must stay,
such as the marks of a chat template and the question (`keep`).

P/D-Device compresses the prompt of its device, and ElastiLM that of each request. The share of tokens kept is rho for
the first and p for the second; l is the prompt's length and v the size of the vocabulary.
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
from disco_core.systems.model_arrays import load_arrays, save_arrays

if TYPE_CHECKING:
    from llama_cpp import Llama

# after a full stop, whatever closes around it, and before the space that a tokenizer glues to the next word
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*(?=\s+\S)|(?<=[。！？])(?=\S)|(?=\n\s*\S)")
_INSIDE_WORD = re.compile(rb"'?[A-Za-z0-9\x80-\xff]")  # the beginning of a token that continues a word
_ARRAYS = ("begins_word", "tokens", "pairs", "pair_counts")


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
        with closing(_load(model_file("self_information", model), len(ids))) as llama:
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


class Frequencies:
    """Frequencies of tokens and of pairs of neighbouring tokens in calibration text; make them with `count`.

    begins_word   tokens that begin a word, bool, shape (v,); see `word_starts`
    tokens        occurrences of each token, shape (v,)
    pairs         the pairs that occur, as `first * v + second`, ascending, shape (pairs,)
    pair_counts   occurrences of each of them, at least 1, shape (pairs,)

    Probabilities are interpolated as Witten and Bell (1991) do. If token s is followed n(s) times, by T(s) different
    tokens, `p(t | s) = (n(s, t) + T(s) p(t)) / (n(s) + T(s))`; after a token that nothing follows, `p(t | s) = p(t)`.
    In `p(t) = (n(t) + 1) / (n + v)` one is added to each token's count, so that no probability is 0.
    """

    def __init__(self, begins_word: ArrayLike, tokens: ArrayLike, pairs: ArrayLike, pair_counts: ArrayLike) -> None:
        self.begins_word, self.tokens = np.asarray(begins_word), np.asarray(tokens)
        self.pairs, self.pair_counts = np.asarray(pairs), np.asarray(pair_counts)
        v = self._vocabulary = self.tokens.size
        kinds = [array.dtype.kind for array in (self.begins_word, self.tokens, self.pairs, self.pair_counts)]
        matching = self.begins_word.shape == (v,) and self.pair_counts.shape == self.pairs.shape == (self.pairs.size,)
        if kinds != ["b", "i", "i", "i"] or not matching or not v or np.any(self.tokens < 0):
            raise InputError("frequencies must be bools and counts, one each per token, and one count per pair")
        if np.any(np.diff(self.pairs, prepend=-1, append=v * v) <= 0) or np.any(self.pair_counts < 1):
            raise InputError("pairs must be ascending and in the vocabulary, each with a count of at least 1")
        first = self.pairs // v
        self._followed = np.bincount(first, weights=self.pair_counts, minlength=v)  # n(s)
        self._followers = np.bincount(first, minlength=v)  # T(s)
        self._total = int(self.tokens.sum())

    @classmethod
    def count(cls, texts: Sequence[Sequence[int]], begins_word: ArrayLike) -> "Frequencies":
        """The frequencies in texts of token ids; the two tokens of a pair are in one text.

        begins_word   tokens of the vocabulary that begin a word, bool, shape (v,)
        InputError for no text, or an id that is not in the vocabulary.
        """
        v = np.size(begins_word)
        checked = [_checked_ids(text, v) for text in texts if len(text)]
        if not checked:
            raise InputError("texts must hold at least one token")
        pairs, counts = np.unique(np.concatenate([ids[:-1] * v + ids[1:] for ids in checked]), return_counts=True)
        return cls(begins_word, np.bincount(np.concatenate(checked), minlength=v), pairs, counts)

    def save(self, path: Path | str, parent: Path | str) -> None:
        """Write an npz file that belongs to the model in the file `parent`. Errors of `save_arrays`."""
        save_arrays(path, parent, {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, path: Path | str, parent: Path | str | None = None) -> "Frequencies":
        """The frequencies in a file, if they were counted for the model `parent`. Errors of `load_arrays`."""
        return cls(**load_arrays(path, parent, _ARRAYS, "count the frequencies again"))

    def scores(self, ids: Sequence[int] | Ints) -> Floats:
        """Self-information of each token of a prompt in nats, shape (l,); all tokens of a word have the word's mean.

        Equal scores keep a word whole when `keep` selects tokens, but for the one at which the share ends. The first
        token is scored by `p(t)`. InputError for no ids, or one that is not in the vocabulary.
        """
        prompt = _checked_ids(ids, self._vocabulary)
        probability = (self.tokens[prompt] + 1) / (self._total + self._vocabulary)
        before = prompt[:-1]
        followers, seen = self._followers[before], self._pair_counts(prompt)
        interpolated = (seen + followers * probability[1:]) / np.maximum(self._followed[before] + followers, 1)
        probability[1:] = np.where(followers > 0, interpolated, probability[1:])
        starts = self._starts(prompt)
        lengths = np.diff(starts, append=prompt.size)
        scores: Floats = np.repeat(np.add.reduceat(-np.log(probability), starts) / lengths, lengths)
        return scores

    def unknown(self, ids: Sequence[int] | Ints) -> float:
        """Share of a prompt's words that have a token, or within the word a pair, which the texts do not have."""
        prompt = _checked_ids(ids, self._vocabulary)
        starts = self._starts(prompt)
        strange = self.tokens[prompt] == 0
        strange[1:] |= ~self.begins_word[prompt[1:]] & (self._pair_counts(prompt) == 0)
        return float(np.logical_or.reduceat(strange, starts).mean())

    def _pair_counts(self, prompt: Ints) -> Ints:
        """How often the texts have each pair of neighbours, shape (l - 1,)."""
        pairs = prompt[:-1] * self._vocabulary + prompt[1:]
        if not self.pairs.size:
            return np.zeros(pairs.size, np.int64)
        at = np.minimum(np.searchsorted(self.pairs, pairs), self.pairs.size - 1)
        counts: Ints = np.where(self.pairs[at] == pairs, self.pair_counts[at], 0)
        return counts

    def _starts(self, prompt: Ints) -> Ints:
        """Where the prompt's words begin; its first token always begins one."""
        begins = self.begins_word[prompt]
        begins[0] = True
        return np.flatnonzero(begins)


def word_starts(model: "Llama") -> NDArray[np.bool_]:
    """Tokens of a llama.cpp model's vocabulary that begin a word, shape (v,); a vocabulary without weights will do.

    A token that begins with a letter, a digit, or an apostrophe before one continues the word before it. All
    characters beyond ASCII count as letters, so that a text in Japanese is one word up to the next space.
    """
    pieces = (model._model.detokenize([id], special=True) for id in range(model.n_vocab()))
    return np.array([_INSIDE_WORD.match(piece) is None for piece in pieces])


def _checked_ids(ids: Sequence[int] | Ints, vocabulary: int) -> Ints:
    """Token ids as an array of shape (l,); InputError for none, or one that is not in the vocabulary."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise InputError(f"ids must be a list of at least one token id, got {ids!r:.80}")
    if array.min() < 0 or array.max() >= vocabulary:
        strange = array[(array < 0) | (array >= vocabulary)][0]
        raise InputError(f"ids must be from 0 to {vocabulary - 1}, got {strange}")
    return array.astype(np.int64, copy=False)


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
