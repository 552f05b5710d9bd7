"""ElastiLM on this machine: the levels of the device model made, timed, served, and, where asked for, evaluated.

    layers      layer, removal (nats per token that the loss grows by without it), anchor
    levels      percent, share (of block weights), groups, neurons, bytes; block_bytes, head_bytes of the matrix that
                no level cuts, stored_bytes of the model's file
    making      step, seconds
    latency     percent, order, prompt_tokens, repeat, ttft_s, tpot_s; one thread
    switching   from, to, how, repeat, ttft_s of the request that came after one to `from`, load_s
    answers     percent, text of one answer, tokens, ttft_s
    memory      what, bytes (proportional set size)
    perplexity, recovery, accuracy   if evaluated: see `elastic_scores`

Unless it evaluates, it makes the levels from the anchors and shapes that the committed reference found.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, aclosing, closing
from functools import partial
from itertools import islice, pairwise, product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from artifact.data import model
from artifact.elastic import make
from artifact.elastic.cut import Shape
from artifact.errors import ArtifactError
from artifact.files import BUILD, DATA
from artifact.measure import elastic_memory, elastic_scores
from artifact.measure.answers import run_in_thread
from artifact.measure.elastic_scores import ORDERED, STORED
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.endpoints.base import Prefix, non_negative_int
from disco_core.endpoints.llama_cpp import BATCH
from disco_core.errors import InputError
from disco_core.systems.elastic import ElasticEndpoint, Level, load_levels
from disco_core.systems.elastic.levels import MANIFEST

if TYPE_CHECKING:
    from llama_cpp import Llama

LEVELS = BUILD / "levels"
REFERENCE = DATA / "measured" / "elastic"
RESIDENT, ON_DEMAND = "in memory", "on demand"
PROMPT = "Explain in two sentences why the sky is blue."
NEAR = 0.015  # a level of the reference within this of a share that is asked for is that level
_SUBJECTS = ("a river", "the tram", "an old library", "the night market", "a lighthouse", "our kitchen", "the forest")


def tables(evaluate: bool) -> list[str]:
    """Names of the tables of `data/` that a measurement uses."""
    known = [] if evaluate or not (REFERENCE / "manifest.json").exists() else ["layers", "levels"]
    return ["prompts", *(f"measured/elastic/{name}" for name in known)]


def measure(run: Run) -> Tables:
    """All tables; the notebook `measure_elastic` describes the settings.

    InputError for invalid settings, ArtifactError, in one line, where levels cannot be made.
    """
    s = run.settings
    _check(s)
    wanted = (*elastic_memory.CASES, str(make.ORDERED))
    reason = elastic_scores.missing() if s.evaluate else ""
    evaluates = s.evaluate and not reason
    if reason:
        print(reason)
    count = len(s.percents) + 1
    timed = 1 + (count + 1) * len(s.lengths) * s.repeats + s.repeats + 1 + count + len(wanted)
    run.expect(timed + (elastic_scores.pieces(count, len(s.ranks)) if evaluates else 0))
    found = _made(run)
    levels = load_levels(LEVELS, model.smollm2_path())
    found["latency"] = _latency(run, levels)
    found |= run_in_thread(_served(run, levels))
    context = _context(s)
    used = {
        what: run.piece_now(f"memory {what}", partial(elastic_memory.bytes_of, LEVELS, what, context), timed=False)
        for what in wanted
    }
    found["memory"] = pd.DataFrame(used.items(), columns=["what", "bytes"])
    if not evaluates:
        return found | {name: pd.DataFrame(columns=columns) for name, columns in elastic_scores.COLUMNS.items()}
    anchors = found["layers"].layer[found["layers"].anchor == 1].tolist()
    return found | elastic_scores.evaluate(run, levels, _shapes(found["levels"]), anchors)


def _check(s: Any) -> None:
    for name in ("percents", "ranks"):
        given = getattr(s, name)
        fits = isinstance(given, list) and all(type(one) is int and 0 < one < 100 for one in given)
        if not fits or not given or len(set(given)) < len(given):
            raise InputError(f"{name} must be different whole numbers from 1 to 99, got {given!r:.80}")
    checks.tokens(s.lengths, "lengths")
    for name in ("repeats", "answer_tokens", "answers", "longest", "questions", "live_tokens"):
        checks.count(getattr(s, name), name)
    if checks.count(s.decode_tokens, "decode_tokens") < 2:
        raise InputError(f"decode_tokens must be at least 2, got {s.decode_tokens}")
    checks.instance_of(s.evaluate, bool, "evaluate")
    non_negative_int(s.seed, "seed")
    trained = int(model.tokenizer().metadata["llama.context_length"])
    if _context(s) > trained:
        raise InputError(f"prompt and answer need {_context(s)} tokens of context; {model.NAME} has {trained}")


def _context(s: Any) -> int:
    return int(max(max(s.lengths) + s.decode_tokens, len(model.build(PROMPT)) + s.live_tokens))


def _made(run: Run) -> Tables:
    """The levels in their folder, and how they came about; those of an interrupted run only if they are gone."""
    s = run.settings

    def take() -> dict[str, Any]:
        shares, options = _known(s)
        made = make.make(LEVELS, shares, answer_tokens=s.answer_tokens, seed=s.seed, **options)
        seconds = [{"step": step, "seconds": round(spent, 3)} for step, spent in made.seconds.items()]
        found = {"layers": made.layers.to_dict("records"), "levels": made.levels.to_dict("records")}
        return found | {"making": seconds, "sha256": _sum()}

    stored = run.piece_now("levels", take, timed=False)
    found = {name: pd.DataFrame(stored[name]) for name in ("layers", "levels", "making")}
    if _sum() != stored["sha256"] or not _complete():
        below = found["levels"][found["levels"].percent < 100]
        anchors = found["layers"].layer[found["layers"].anchor == 1].tolist()
        options = {"anchors": anchors, "shapes": _shapes(found["levels"])}
        make.make(LEVELS, below.share.tolist(), answer_tokens=s.answer_tokens, seed=s.seed, **options)
    found["levels"] = _with_bytes(found["levels"])
    return found


def _known(s: Any) -> tuple[list[float], dict[str, Any]]:
    """Shares of the levels, with anchors and shapes from the reference, if it is to be used and has these levels."""
    shares = [percent / 100 for percent in s.percents]
    if len(tables(s.evaluate)) == 1:
        return shares, {}
    try:
        layers, levels = (pd.read_csv(REFERENCE / f"{name}.csv") for name in ("layers", "levels"))
        below = levels[levels.percent < make.ORDERED]
        closest = [below.iloc[(below.share - share).abs().argmin()] for share in shares]
        anchors = layers.layer[layers.anchor == 1].tolist()
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{REFERENCE} is not the reference it was: {error}; `git checkout data`") from None
    off = [abs(level.share - share) for level, share in zip(closest, shares, strict=True)]
    if max(off) > NEAR or len({level.percent for level in closest}) < len(shares):
        return shares, {"anchors": anchors}
    return [float(level.share) for level in closest], {"anchors": anchors, "shapes": _shapes(levels)}


def made_levels(percents: Sequence[int], answer_tokens: int, seed: int) -> dict[int, Level]:
    """The whole model and the levels of these percents, the largest first; made unless they are in their folder.

    InputError for a level that there is not, ArtifactError, in one line, where levels cannot be made.
    """
    shares = [percent / 100 for percent in percents]
    try:
        return _nearest(load_levels(LEVELS, model.smollm2_path()), shares)
    except InputError:  # not there, not complete, or others
        known, options = _known(SimpleNamespace(percents=percents, evaluate=False))
        make.make(LEVELS, known, answer_tokens=answer_tokens, seed=seed, **options)
        return _nearest(load_levels(LEVELS, model.smollm2_path()), shares)


def _nearest(levels: Mapping[int, Level], shares: Sequence[float]) -> dict[int, Level]:
    """The whole model, and of each share the level, which is at most NEAR away."""
    found = {make.ORDERED}
    for share in shares:
        percent = min(levels, key=lambda percent: abs(levels[percent].share - share))
        if abs(levels[percent].share - share) > NEAR:
            known = ", ".join(map(str, levels))
            raise InputError(f"the level {100 * share:g} % is unknown; the levels are {known} %")
        found.add(percent)
    return {percent: level for percent, level in levels.items() if percent in found}


def _shapes(levels: pd.DataFrame) -> dict[int, Shape]:
    return {int(row.percent): Shape(int(row.groups), int(row.neurons)) for row in levels.itertuples()}


def _sum() -> str:
    try:
        return hashlib.sha256((LEVELS / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""


def _complete() -> bool:
    """Whether every level of the manifest is there as it was made."""
    try:
        return bool(load_levels(LEVELS))
    except InputError:
        return False


def _with_bytes(levels: pd.DataFrame) -> pd.DataFrame:
    """The levels with what of their files is read for each token: the head, and the blocks.

    All else is the same in every level: vocabulary and head.
    """
    from gguf import GGUFReader

    sizes = {one.name: int(one.n_bytes) for one in GGUFReader(LEVELS / f"{make.ORDERED}.gguf").tensors}
    blocks = sum(size for name, size in sizes.items() if name.startswith("blk."))
    others = int(levels.bytes[levels.percent == make.ORDERED].iloc[0]) - blocks
    columns = levels[["percent", "share", "groups", "neurons", "bytes"]]
    return columns.assign(
        head_bytes=sizes["token_embd.weight"],
        block_bytes=levels.bytes - others,
        stored_bytes=model.smollm2_path().stat().st_size,
    )


def _latency(run: Run, levels: Mapping[int, Level]) -> pd.DataFrame:
    """TTFT and TPOT of every level and the model as stored; trials in random order, each from an empty state."""
    s, rows = run.settings, []
    ids = _text(max(s.lengths))
    paths = {(percent, ORDERED): level.path for percent, level in levels.items()}
    paths[100, STORED] = model.smollm2_path()
    trials = [*product(range(len(paths)), s.lengths, range(s.repeats))]
    with ExitStack() as opened:
        llamas = [opened.enter_context(closing(_load(path, _context(s)))) for path in paths.values()]
        for llama in llamas:
            _timed(llama, ids[: min(s.lengths)], 2)
        for which, length, repeat in np.random.default_rng(s.seed).permutation(trials).tolist():
            key = f"latency {which}: {length} tokens, trial {repeat}"
            times = run.piece_now(key, partial(_timed, llamas[which], ids[:length], s.decode_tokens))
            pace = (times[-1] - times[0]) / (len(times) - 1)
            rows.append((*list(paths)[which], length, repeat, times[0], pace))
    columns = ["percent", "order", "prompt_tokens", "repeat", "ttft_s", "tpot_s"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(columns[:4], ascending=[False, True, True, True], ignore_index=True)


def _load(path: Any, context: int) -> "Llama":
    return model.load(path, n_ctx=context, n_threads=1, n_threads_batch=1, n_batch=BATCH, n_ubatch=BATCH, seed=0)


def _text(length: int) -> list[int]:
    """The first `length` tokens of a request in the chat template."""
    request = model.build(" ".join(f"Describe {subject} to a friend." for subject in _SUBJECTS))
    once: list[int] = model.tokenizer().tokenize(request.encode(), add_bos=False, special=True)
    return (once * (length // len(once) + 1))[:length]


def _timed(llama: "Llama", prompt: Sequence[int], n: int) -> list[float]:
    """Seconds from the request to each of n greedily decoded tokens, also after the end of the answer."""
    llama.reset()
    start = time.perf_counter()
    return [time.perf_counter() - start for _ in islice(llama.generate(prompt, temp=0.0), n)]


async def _served(run: Run, levels: Mapping[int, Level]) -> Tables:
    """What `ElasticEndpoint` gives: switching between levels in memory and on demand, and an answer of each level."""
    s, switching, answers = run.settings, list[Any](), list[Any]()
    ids, rng = _text(min(s.lengths)), np.random.default_rng([s.seed, 1])
    end = _Served(levels, True, _context(s))
    async with end:
        for percent in levels:
            await end.first(percent, ids)
        for repeat in range(s.repeats):
            pairs = rng.permutation([pair for pair in product(levels, levels) if pair[0] != pair[1]]).tolist()
            switching += await run.piece(f"switching {repeat}", partial(end.switches, pairs, ids, repeat))
        for percent in levels:
            answers.append(await run.piece(f"answer {percent}", partial(end.answer, percent, s.live_tokens)))
    end = _Served(levels, False, _context(s))
    async with end:
        pairs = [*pairwise([*levels, max(levels)])]
        switching += await run.piece("on demand", partial(end.switches, pairs, ids, 0))
    return {"switching": pd.DataFrame(switching), "answers": pd.DataFrame(answers)}


class _Served(ElasticEndpoint):
    """An endpoint whose next request is answered by the level `percent`."""

    def __init__(self, levels: Mapping[int, Level], resident: bool, context: int) -> None:
        self.percent, self.how = max(levels), RESIDENT if resident else ON_DEMAND
        super().__init__(levels, lambda _: self.percent, resident=resident, n_ctx=context)

    async def first(self, percent: int, ids: Sequence[int]) -> float:
        """Seconds to the first token of an answer by a level."""
        return float((await self.answer(percent, 1, ids))["ttft_s"])

    async def switches(self, pairs: Sequence[Sequence[int]], ids: Sequence[int], repeat: int) -> list[dict[str, Any]]:
        """For each pair of levels a request to the second after one to the first, and one more to the second."""
        rows = []
        for source, target in pairs:
            await self.first(source, ids)
            for before in (source, target):
                row = {"from": before, "to": target, "how": self.how, "repeat": repeat}
                row["ttft_s"] = await self.first(target, ids)
                rows.append(row | {"load_s": self.switched_s if before != target else 0.0})
        return rows

    async def answer(self, percent: int, tokens: int, ids: Sequence[int] | None = None) -> dict[str, Any]:
        """An answer of a level to `PROMPT`, or to a prompt of ids: percent, text, tokens, ttft_s.

        Where the first token ends the turn, which small levels do, the answer is empty and that token's time counts.
        """
        self.percent = percent
        start, first_s, texts = time.perf_counter(), None, list[str]()
        async with aclosing(self.generate(Prefix(ids or model.build(PROMPT), (), tokens))) as generated:
            async for token in generated:
                first_s = first_s or time.perf_counter() - start
                texts.append(token.text)
        first_s = first_s or time.perf_counter() - start
        return {"percent": percent, "text": "".join(texts), "tokens": len(texts), "ttft_s": first_s}
