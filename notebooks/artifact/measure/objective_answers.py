"""Prompts of few-shot examples and a question, and which of them a model answers rightly with every pair (p, m).

A prompt has the examples and the question of a task. Its question stays, the rest is compressed to the share p.
Texts are fetched when this runs; only numbers leave this module, frequencies of tokens and of their pairs among them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from artifact.data import model, parse
from artifact.elastic.labels import PROMPT_FEATURES
from artifact.elastic.make import PROMPTS
from artifact.measure.elastic_scores import CONTEXT, TASKS, Ids, Question, option_nats, scored
from artifact.measure.pieces import Run, Tables
from disco_core.checks import Floats, Ints
from disco_core.endpoints.llama_cpp import BATCH
from disco_core.errors import InputError
from disco_core.systems.compression import Frequencies, keep, protected_spans, self_information, word_starts
from disco_core.systems.elastic import Level, Objective
from disco_core.systems.elastic.decision import WHOLE, features

if TYPE_CHECKING:
    from llama_cpp import Llama

SHOTS = 3  # examples in each prompt
CALIBRATION, TEST, LIVE = "calibration", "test", "live"
FREQUENCIES, SELF_INFORMATION = "frequencies", "self-information of the smallest level"
ENDS, RANDOM = "keep the ends", "random"
METHODS = (FREQUENCIES, SELF_INFORMATION, ENDS, RANDOM)
ALONE = -1  # in place of a pair's second token: the count of the first token
COLUMNS = {
    "answers": ["question", "p", "m", "right"],
    "compression": ["method", "p", "question", "right"],
}

Scorer = Callable[[Ids], Floats]


class Asked(NamedTuple):
    """A prompt.

    question    its name
    task, split
    ids         of the prompt; `protected`: which of them stay
    options     ids of each; `right`: the index of the right one
    text        the question with its right answer, which frequencies are counted on
    """

    question: str
    task: str
    split: str
    ids: Ids
    protected: NDArray[np.bool_]
    options: list[Ids]
    right: int
    text: Ids


def task_prompts(task: str, calibration: int, test: int, seed: int) -> list[Asked]:
    """Prompts of a task, drawn without replacement: examples, calibration and test questions share none.

    Prompts too long for the context are left out. InputError if the task has too few questions.
    """
    table = parse.load(task).drop_duplicates("question", ignore_index=True)
    wanted = SHOTS + calibration + test
    if wanted > len(table):
        raise InputError(f"{task} has {len(table)} questions, fewer than the {wanted} that are asked for")
    drawn = np.random.default_rng([seed, SHOTS, TASKS.index(task)]).permutation(len(table))[:wanted].tolist()
    texts = [f"Question: {text.strip()}\nAnswer:" for text in table.question]
    answers = [f" {options[right].strip()}" for options, right in zip(table.options, table.correct, strict=True)]
    examples = "".join(f"{texts[k]}{answers[k]}\n\n" for k in drawn[:SHOTS])
    found = []
    for at, k in enumerate(drawn[SHOTS:]):
        ids, protected = protected_spans([(examples, False), (texts[k], True)], model.tokenizer())
        options = [_ids(f" {option.strip()}") for option in table.options[k]]
        split = CALIBRATION if at < calibration else TEST
        if len(ids) + max(map(len, options)) <= CONTEXT:
            text = _ids(texts[k] + answers[k])
            found.append(
                Asked(f"{task} {k}", task, split, ids.tolist(), protected, options, int(table.correct[k]), text)
            )
    return found


def plain_prompts(tokens: Sequence[int], seed: int) -> list[Asked]:
    """Requests of about so many tokens each made of the committed prompts, in the chat template, without options.

    The last prompt stays, as a question does, and so do the marks of the template; those before it are compressed.
    """
    texts = pd.read_csv(PROMPTS).prompt.tolist()
    order = np.random.default_rng([seed, SHOTS]).permutation(len(texts))
    lengths = np.array([len(_ids(text)) for text in texts])
    found = []
    for k, wanted in enumerate(tokens):
        turn = np.roll(order, -k)
        used = 1 + int(np.searchsorted(np.cumsum(lengths[turn]), wanted))
        last, *before = [texts[i] for i in turn[:used]]
        opening, ending = model.TEMPLATE.split("{prompt}")
        spans = [(opening, True), ("".join(f"{text}\n\n" for text in before), False), (last + ending, True)]
        ids, protected = protected_spans(spans, model.tokenizer())
        found.append(Asked(f"prompt {turn[0]}", "prompts", LIVE, ids.tolist(), protected, [], 0, _ids(last)))
    return found


def plain_text(tokens: int) -> Ids:
    """The first tokens of the committed prompts, one after the other: a text that every level continues."""
    text = _ids(" ".join(pd.read_csv(PROMPTS).prompt))
    if tokens > len(text):
        raise InputError(f"a prompt has at most {len(text)} tokens of the committed ones, not {tokens}")
    return text[:tokens]


def _ids(text: str) -> Ids:
    ids: Ids = model.tokenizer().tokenize(text.encode(), add_bos=False, special=True)
    return ids


@cache
def _begins_word() -> NDArray[np.bool_]:
    return word_starts(model.tokenizer())


def counted(texts: Sequence[Ids]) -> Frequencies:
    """Frequencies in calibration texts."""
    return Frequencies.count(texts, _begins_word())


def counts(frequencies: Frequencies) -> pd.DataFrame:
    """Frequencies as a table: first, second, count; second is ALONE in the count of a token."""
    known = np.flatnonzero(frequencies.tokens)
    first, second = np.divmod(frequencies.pairs, frequencies.tokens.size)
    return pd.DataFrame(
        {
            "first": np.concatenate([known, first]),
            "second": np.concatenate([np.full(known.size, ALONE), second]),
            "count": np.concatenate([frequencies.tokens[known], frequencies.pair_counts]),
        }
    )


def frequencies_of(table: pd.DataFrame) -> Frequencies:
    """The frequencies that a table of `counts` holds. InputError if they are of another vocabulary."""
    begins, alone = _begins_word(), table.second == ALONE
    if table[["first", "second"]].max(axis=None) >= begins.size:
        raise InputError("the frequencies were counted for another vocabulary; measure with evaluate again")
    tokens = np.zeros(begins.size, np.int64)
    tokens[table["first"][alone]] = table["count"][alone]
    pairs = table[~alone]
    ids = (pairs["first"] * begins.size + pairs.second).to_numpy(np.int64)
    return Frequencies(begins, tokens, ids, pairs["count"].to_numpy(np.int64))


def described(asked: Sequence[Asked], frequencies: Frequencies) -> pd.DataFrame:
    """The table of prompts: question, task, split, tokens, protected, and the features of each."""
    rows = []
    for one in asked:
        unknown = frequencies.unknown(one.ids)
        of_prompt = features(frequencies.scores(one.ids), unknown, Objective(1, 1))[: len(PROMPT_FEATURES)]
        about = (one.question, one.task, one.split, len(one.ids), int(one.protected.sum()))
        rows.append((*about, *of_prompt))
    return pd.DataFrame(rows, columns=["question", "task", "split", "tokens", "protected", *PROMPT_FEATURES])


def scorers(frequencies: Frequencies, smallest: "Llama", seed: int) -> dict[str, Scorer]:
    """The ways to score a prompt's tokens, of which those with the highest scores are kept."""
    return {
        FREQUENCIES: frequencies.scores,
        SELF_INFORMATION: partial(self_information, smallest),
        ENDS: lambda ids: np.abs(np.arange(len(ids)) - (len(ids) - 1) / 2),
        RANDOM: lambda ids: np.random.default_rng([seed, *ids]).random(len(ids)),
    }


def opened(level: Level, context: int) -> "closing[Llama]":
    """A level to score with, on one thread as `self_information` has it; it is closed with the block."""
    options = {"n_threads": 1, "n_threads_batch": 1, "n_batch": BATCH, "n_ubatch": BATCH}
    return closing(model.load(level.path, n_ctx=context, **options))


def pieces(levels: int, shares: int) -> int:
    """How many pieces an evaluation has."""
    return len(TASKS) * levels * shares + (len(METHODS) - 1) * (shares - 1)


def evaluate(run: Run, levels: Mapping[int, Level], asked: Sequence[Asked], frequencies: Frequencies) -> Tables:
    """Whether the answer is right: of each question with each pair, and of test questions by other compressions."""
    s, rows = run.settings, dict[str, list[tuple[object, ...]]]({name: [] for name in COLUMNS})
    for percent, level in levels.items():
        for p in s.shares:
            for task in TASKS:
                some = [one for one in asked if one.task == task]
                take = partial(_right, level, some, p, frequencies.scores)
                ticked = run.piece_now(f"answers of {percent} at {p:g}, {task}", take, timed=False)
                rows["answers"] += [
                    (one.question, p, percent, right) for one, right in zip(some, ticked, strict=True)
                ]
    tested, smallest = [one for one in asked if one.split == TEST], levels[min(levels)]
    with opened(smallest, CONTEXT) as llama:
        for method, scorer in scorers(frequencies, llama, s.seed).items():
            for p in (p for p in s.shares if p < 1 and method != FREQUENCIES):
                take = partial(_right, levels[WHOLE], tested, p, scorer)
                ticked = run.piece_now(f"compression by {method} at {p:g}", take, timed=False)
                rows["compression"] += [(method, p, one.question, r) for one, r in zip(tested, ticked, strict=True)]
    return {name: pd.DataFrame(some, columns=COLUMNS[name]) for name, some in rows.items()}


def kept(asked: Asked, p: float, scores: Floats) -> Ids:
    """The ids of a prompt that is compressed to the share p."""
    chosen: Ints = keep(scores, p, asked.protected)
    return [asked.ids[at] for at in chosen]


def _right(level: Level, asked: Sequence[Asked], p: float, scorer: Scorer) -> list[int]:
    """1 for each prompt whose right option has the highest mean log-probability, otherwise 0."""
    found: list[int] = []
    before: Ids = []
    with scored(level.path, level.adapter) as llama:
        for one in asked:
            ids = one.ids if p == 1 else kept(one, p, scorer(one.ids))
            question = Question(0, ids, one.options, one.right)
            means = [nats.mean() for nats in option_nats(llama, question, same=_same(before, ids))]
            before = ids
            found.append(int(np.argmin(means) == one.right))
    return found


def _same(before: Ids, ids: Ids) -> int:
    """How many first ids, but not all, two prompts have in common: the examples, where they were compressed alike."""
    other = (at for at, (one, two) in enumerate(zip(before, ids, strict=False)) if one != two)
    return next(other, min(len(before), len(ids) - 1))
