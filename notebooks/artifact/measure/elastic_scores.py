"""What levels of a model still know: the likelihood of test answers, and accuracy on questions of multiple choice.

A level is made in several ways, each as files that llama.cpp loads. Texts are fetched when this runs; only numbers
leave this module.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from artifact.data import model, parse
from artifact.elastic import forward, recovery
from artifact.elastic.cut import Shape, write_adapter, write_level
from artifact.elastic.make import Workshop
from artifact.errors import TraceError
from artifact.files import BUILD
from artifact.measure.pieces import Run, Tables
from disco_core.systems.elastic import Level

if TYPE_CHECKING:
    from llama_cpp import Llama

TASKS = ("ARC-Easy", "PIQA", "OpenBookQA")
ANSWERS = "alpaca"
STORED, ALIKE, ORDERED, FULL = "as stored", "in order, no anchors", "in order", "full"
STREAM = ", towards the stream"  # the other target of the regression, tried at one level
NEAREST = 80  # percent of the level that EL6 is about, and at which higher ranks and the other target are tried
CONTEXT, THREADS = 512, 2
COLUMNS = {
    "perplexity": ["percent", "method", "answer", "tokens", "nats"],
    "recovery": ["percent", "rank", "towards", "layer", "explained", "held_out"],
    "accuracy": ["percent", "method", "task", "question", "options", "chosen", "right", "chosen_nats", "right_nats"],
}

Ids = list[int]


def nearest(percents: Sequence[int]) -> int:
    """Of the levels below 100 %, the one nearest to 80 %."""
    return min((percent for percent in percents if percent < 100), key=lambda percent: abs(percent - NEAREST))


def rank(k: int) -> str:
    """The name of a recovery at rank k."""
    return f"rank {k}"


def missing(sources: Sequence[str] = (ANSWERS, *TASKS)) -> str:
    """Why nothing can be evaluated, in one line; "" if all texts are there, fetched if necessary."""
    try:
        for source in sources:
            parse.load(source)
    except TraceError as error:
        return f"not evaluated, since the public texts are not there: {error}"
    return ""


class Question(NamedTuple):
    """A question as token ids: its number in the task, its text, its options, the index of the right one."""

    number: int
    text: Ids
    options: list[Ids]
    right: int


def test_answers(count: int, longest: int) -> list[tuple[Ids, Ids]]:
    """Prompt, in the chat template, and answer of the first texts with an answer of 1 to `longest` tokens."""
    found = []
    for row in parse.load(ANSWERS).itertuples():
        prompt, answer = _ids(model.build(str(row.prompt))), _ids(str(row.output))
        if 0 < len(answer) <= longest and len(prompt) + len(answer) <= CONTEXT:
            found.append((prompt, answer))
        if len(found) == count:
            break
    return found


def questions(task: str, count: int, seed: int) -> list[Question]:
    """Questions of a task, drawn without replacement, in their order; those too long for the context are left out."""
    table = parse.load(task)
    drawn = np.random.default_rng([seed, TASKS.index(task)]).permutation(len(table))[:count]
    found = []
    for number in np.sort(drawn).tolist():
        asked, options, right = table.loc[number, ["question", "options", "correct"]]
        text = _ids(f"Question: {asked.strip()}\nAnswer:")
        ids = [_ids(f" {option.strip()}") for option in options]
        if len(text) + max(map(len, ids)) <= CONTEXT:
            found.append(Question(number, text, ids, int(right)))
    return found


def _ids(text: str) -> Ids:
    ids: Ids = model.tokenizer().tokenize(text.encode(), add_bos=False, special=True)
    return ids


@dataclass
class Methods:
    """The ways to make each level, as files in `folder`, made when they are first asked for.

    levels    the levels as they are served, with the ordered model as 100
    shapes    of each level below 100 %
    settings  those of the notebook, of which `answer_tokens`, `ranks` and `seed` count here
    """

    folder: Path
    levels: Mapping[int, Level]
    shapes: Mapping[int, Shape]
    anchors: Sequence[int]
    settings: Any
    _made: dict[tuple[int, str], tuple[Path, Path | None]] = field(default_factory=dict, init=False)
    _rows: dict[tuple[int, str], list[dict[str, Any]]] = field(default_factory=dict, init=False)

    def of(self, percent: int) -> list[str]:
        """The names of the ways to make a level."""
        if percent == 100:
            return [STORED, ORDERED]
        first, *others = map(rank, self.settings.ranks)
        more = [*others, first + STREAM, FULL + STREAM] if percent == nearest([*self.levels]) else []
        return [STORED, ALIKE, ORDERED, first, FULL, *more]

    def asked(self, percent: int) -> list[str]:
        """Those of them that are asked questions: at the level nearest 80 % they are compared."""
        if percent == 100:
            return [STORED]
        return (
            [STORED, ORDERED, rank(self.settings.ranks[0]), FULL] if percent == nearest([*self.levels]) else [ORDERED]
        )

    def files(self, percent: int, method: str) -> tuple[Path, Path | None]:
        """The file of a level made in one way, and its adapter or None."""
        if (percent, method) not in self._made:
            self._made[percent, method] = self._make(percent, method)
        return self._made[percent, method]

    def recovered(self, percent: int, method: str) -> list[dict[str, Any]]:
        """Of each layer that was corrected, the share of what was cut that is predicted; nothing without recovery."""
        self.files(percent, method)
        return self._rows.get((percent, method), [])

    def drop(self, percent: int) -> None:
        """Remove the files of a level that is evaluated."""
        for path in self.folder.glob(f"{percent} *.gguf"):
            path.unlink()

    def _make(self, percent: int, method: str) -> tuple[Path, Path | None]:
        if method == ORDERED:
            return self.levels[percent].path, None
        if percent == 100:
            return model.smollm2_path(), None
        target = self.folder / f"{percent} {method}.gguf"
        shape, ordered = self.shapes[percent], self.levels[100].path
        if method == STORED:
            write_level(self._stored, shape, self.anchors, target)
        elif method == ALIKE:
            path, alike = self._alike
            write_level(path, self._shop.shape(alike, self.levels[percent].share, []), [], target)
        else:
            found = self._recovered(percent, method)
            if not method.startswith(FULL):
                factors = [None if one is None else (one.a, one.b) for one in found]
                write_adapter(ordered, self.levels[percent].share, factors, target)
                return self.levels[percent].path, target
            pairs = zip(self._ordered.blocks, found, strict=True)
            down = [None if one is None else recovery.full(block, one) for block, one in pairs]
            write_level(ordered, shape, self.anchors, target, down)
        return target, None

    def _recovered(self, percent: int, method: str) -> list[recovery.Layer | None]:
        name, towards = method.removesuffix(STREAM), "stream" if method.endswith(STREAM) else "layer"
        k = None if name == FULL else int(name.split()[-1])
        shape, texts = self.shapes[percent], self._shop.packed
        _, found = recovery.recover(self._ordered, texts, shape, self.anchors, rank=k, towards=towards)
        self._rows[percent, method] = [
            {"percent": percent, "rank": k or FULL, "towards": towards, "layer": layer}
            | dict(zip(("explained", "held_out"), one.explained, strict=True))
            for layer, one in enumerate(found)
            if one is not None
        ]
        return found

    @cached_property
    def _shop(self) -> Workshop:
        return Workshop(self.folder, answer_tokens=self.settings.answer_tokens, seed=self.settings.seed)

    @cached_property
    def _ordered(self) -> forward.Model:
        return forward.load(self.levels[100].path)

    @cached_property
    def _stored(self) -> Path:
        return self._shop.order([], stored=True)

    @cached_property
    def _alike(self) -> tuple[Path, forward.Model]:
        path = self._shop.order([])
        return path, forward.load(path)


def pieces(levels: int, ranks: int) -> int:
    """How many pieces an evaluation has."""
    return 3 + ranks + 5 * (levels - 1) + len(TASKS) * (levels + 3)


def evaluate(run: Run, levels: Mapping[int, Level], shapes: Mapping[int, Shape], anchors: Sequence[int]) -> Tables:
    """Perplexity of every level made in every way, how well each layer was recovered, and accuracy."""
    s, rows = run.settings, dict[str, list[Any]]({name: [] for name in COLUMNS})
    answers = test_answers(s.answers, s.longest)
    asked = {task: questions(task, s.questions, s.seed) for task in TASKS}
    with TemporaryDirectory(dir=BUILD, prefix="evaluated-") as folder:
        methods = Methods(Path(folder), levels, shapes, anchors, s)
        for percent in levels:
            for method in methods.of(percent):
                take = partial(_perplexity, methods, percent, method, answers)
                found = run.piece_now(f"perplexity {percent} {method}", take, timed=False)
                rows["perplexity"] += found["perplexity"]
                rows["recovery"] += found["recovery"]
            for method in methods.asked(percent):
                for task, some in asked.items():
                    chosen = partial(_accuracy, methods, percent, method, some)
                    ticked = run.piece_now(f"accuracy {percent} {method} {task}", chosen, timed=False)
                    rows["accuracy"] += [one | {"task": task} for one in ticked]
            methods.drop(percent)
    return {name: pd.DataFrame(some, columns=COLUMNS[name]) for name, some in rows.items()}


def _perplexity(methods: Methods, percent: int, method: str, answers: Sequence[tuple[Ids, Ids]]) -> dict[str, Any]:
    rows = []
    with scored(*methods.files(percent, method)) as llama:
        for number, (prompt, answer) in enumerate(answers):
            total = nats(_logits(llama, prompt + answer[:-1], rows=len(answer)), answer).sum()
            rows.append(
                {
                    "percent": percent,
                    "method": method,
                    "answer": number,
                    "tokens": len(answer),
                    "nats": round(float(total), 3),
                }
            )
    return {"perplexity": rows, "recovery": methods.recovered(percent, method)}


def _accuracy(methods: Methods, percent: int, method: str, asked: Sequence[Question]) -> list[dict[str, Any]]:
    """Of each question the option with the fewest mean nats per token; the question is evaluated once for all."""
    rows = []
    with scored(*methods.files(percent, method)) as llama:
        for question in asked:
            means = [float(one.mean()) for one in option_nats(llama, question)]
            chosen = int(np.argmin(means))
            rows.append(
                {
                    "percent": percent,
                    "method": method,
                    "question": question.number,
                    "options": len(means),
                    "chosen": chosen,
                    "right": int(chosen == question.right),
                    "chosen_nats": round(means[chosen], 4),
                    "right_nats": round(means[question.right], 4),
                }
            )
    return rows


def option_nats(llama: "Llama", question: Question, *, same: int = 0) -> Iterator[NDArray[np.float64]]:
    """Nats of the tokens of each option behind the question, which is evaluated once for all.

    same   how many first tokens, but not all, it has in common with the one before: these are not evaluated again
    """
    first = _logits(llama, question.text[same:], rows=1, known=same).copy()
    for option in question.options:
        after = option[:-1]  # in the place of the option before
        rows = [first, _logits(llama, after, rows=len(after), known=len(question.text))] if after else [first]
        yield nats(np.concatenate(rows), option)


def _logits(llama: "Llama", ids: Ids, *, rows: int, known: int = 0) -> NDArray[np.float32]:
    """Logits after each of the last `rows` ids, which follow the first `known` ones in the cache.

    They are there until the next call. `eval` would compute those of every id, a fifth of the whole model's work.
    """
    llama._ctx.kv_cache_seq_rm(-1, known, -1)
    llama._batch.set_batch(batch=ids, n_past=known, logits_all=True)
    for at in range(len(ids) - rows):
        llama._batch.batch.logits[at] = False
    llama._ctx.decode(llama._batch)
    logits: NDArray[np.float32] = np.ctypeslib.as_array(llama._ctx.get_logits(), shape=(rows, llama.n_vocab()))
    return logits


def nats(logits: NDArray[np.float32], ids: Ids) -> NDArray[np.float64]:
    """Negative log-probability of each id under its row of logits; shapes (n, vocabulary) and (n,)."""
    top = logits.max(1)
    total = np.log(np.exp(logits - top[:, None]).sum(1, dtype=np.float64)) + top
    lost: NDArray[np.float64] = total - logits[np.arange(len(ids)), ids]
    return lost


def scored(path: Path, adapter: Path | None = None) -> "closing[Llama]":
    """A level, with its adapter, to be asked for logits; it is closed with the block."""
    options = {"n_ctx": CONTEXT, "n_threads": THREADS, "n_threads_batch": THREADS, "n_batch": CONTEXT}
    return closing(model.load(path, lora_path=None if adapter is None else str(adapter), **options))
