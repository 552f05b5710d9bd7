"""ElastiLM's decision on this machine: requests with objectives, answered live with the pair (p, m) chosen for each.

    latency      percent, prompt_tokens, repeat, ttft_s, tpot_s: trials of every level in its endpoint; one thread
    scoring      method, prompt_tokens, repeat, seconds that scoring a prompt takes
    deciding     prompt, seconds that a decision takes
    frequencies  first, second, count: of tokens and of pairs of tokens in the calibration questions
    prompts      question, task, split, tokens, protected, and the features of each prompt
    objectives   ttft, tpot, prompts, feasible (of these), least_ttft, least_tpot: the least ratios that there are
    requests     alpha, request, question, ttft, tpot (the objective), feasible, prompt_tokens, kept, p, m, switched,
                 scoring_s, decision_s, ttft_s from the start, queued_ttft_s from the arrival, tokens, tpot_s,
                 service_s, arrival_s, start_s, whole_ttft_s, whole_tpot_s (what objectives are relative to),
                 met_ttft, met_tpot
    answers      question, p, m, right; if evaluated
    compression  method, p, question, right, with the whole model; if evaluated
    races        policy, device ("whole" or "levels"), request, prompt_tokens, level (that the plan asks for), held_s
                 (the emulated network delay), predicted_s (TTFT in the simulator), and the record of the answer;
                 where it moves up to the whole model, the columns of the server are the level's

Without evaluation the prompts are made of the committed ones, a tenth of requests and races is sent, and pairs are
chosen by a classifier trained on the committed reference's answers; without a reference, the heaviest feasible one.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from artifact.data import model
from artifact.elastic.labels import Outcomes, train_right
from artifact.errors import ArtifactError
from artifact.files import DATA, ROOT
from artifact.measure import objective_answers, objective_races, objective_requests
from artifact.measure.answers import run_in_thread
from artifact.measure.elastic import LEVELS, made_levels
from artifact.measure.elastic_scores import CONTEXT, TASKS, Ids, missing
from artifact.measure.objective_answers import CALIBRATION, FREQUENCIES, Asked
from artifact.measure.objective_requests import Decider, Served
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.endpoints.base import non_negative_int
from disco_core.errors import InputError
from disco_core.systems.compression import Frequencies
from disco_core.systems.elastic import Classifier, LatencyModel, Level, Objective

REFERENCE = DATA / "measured" / "objectives"
KNOWN = ("answers", "prompts", "frequencies")  # of the reference, by which pairs are chosen without evaluation
FEWER = 10  # the part of the requests that is sent without evaluation
TOGETHER = 20  # requests of a piece
CALLS = 50  # of a scorer that takes microseconds


def tables(evaluate: bool) -> list[str]:
    """Names of the tables of `data/` that a measurement uses."""
    known = () if evaluate or not (REFERENCE / "manifest.json").exists() else KNOWN
    return ["prompts", *(f"measured/objectives/{name}" for name in known)]


def measure(run: Run) -> Tables:
    """All tables; the notebook `measure_objectives` describes the settings.

    InputError for invalid settings, objectives that no level can meet, a level that is unknown, or a classifier of
    another model or other levels; ArtifactError, in one line, where levels cannot be made.
    """
    s = run.settings
    _check(s)
    reason = missing(TASKS) if s.evaluate else ""
    evaluates = s.evaluate and not reason
    if reason:
        print(reason)
    levels = made_levels(s.percents, s.answer_tokens, s.seed)
    given = Classifier.load(ROOT / s.classifier, model.smollm2_path(), levels) if s.classifier else None
    asked, reference = _asked(s, evaluates), _reference(s.evaluate)
    frequencies = _frequencies(asked, reference)
    repeats, requests = (s.repeats, s.requests) if evaluates else (1, -(-s.requests // FEWER))
    races = s.races if evaluates else -(-s.races // FEWER)
    live = len(levels) * len(s.lengths) * repeats + s.repeats + 1 + len(s.alphas) * -(-requests // TOGETHER) + races
    run.expect(live + (objective_answers.pieces(len(levels), len(s.shares)) if evaluates else 0))
    found = {
        "frequencies": objective_answers.counts(frequencies),
        "prompts": objective_answers.described(asked, frequencies),
    }
    if evaluates:
        found |= objective_answers.evaluate(run, levels, asked, frequencies)
    else:
        found |= {name: pd.DataFrame(columns=some) for name, some in objective_answers.COLUMNS.items()}
    classifier = given or _trained(found if evaluates else reference, frequencies)
    sent = [one for one in asked if one.split != CALIBRATION]
    found |= run_in_thread(_live(run, levels, sent, Choice(frequencies, classifier, repeats, requests)))
    profiles, raced = latency_model(found, s.shares).levels, _race_prompts(races, s.race_tokens, s.seed)
    return found | run_in_thread(objective_races.raced(run, levels, profiles, raced))


class Choice(NamedTuple):
    """What requests are decided by, trials of each level and length, and requests of each trace."""

    frequencies: Frequencies
    classifier: Classifier | None
    repeats: int
    requests: int


def _check(s: Any) -> None:
    wrong = [one for one in s.percents if isinstance(one, bool) or not isinstance(one, int) or not 0 < one < 100]
    if wrong or not s.percents:
        raise InputError(f"percents must be whole numbers from 1 to 99, got {s.percents!r:.80}")
    shares = [checks.number(p, "shares", 0.0, 1.0, above=True) for p in s.shares]
    if 1 not in shares or len({*shares}) < len(shares):
        raise InputError(f"shares must be different numbers, 1 among them, got {s.shares!r:.80}")
    if not s.objectives or any(not isinstance(one, list) or len(one) != 2 for one in s.objectives):
        raise InputError(f"objectives must be pairs [zeta_TTFT, zeta_TPOT], got {s.objectives!r:.80}")
    for one in s.objectives:
        Objective(*one)
    if not s.alphas:
        raise InputError("alphas must hold at least one number")
    for alpha in s.alphas:
        checks.number(alpha, "alphas", -10.0, 10.0)
    checks.number(s.utilisation, "utilisation", 0.0, 0.99, above=True)
    checks.tokens(s.lengths, "lengths")
    for name in ("requests", "calibration", "test", "prompt_tokens", "repeats", "answer_tokens", "races"):
        checks.count(getattr(s, name), name)
    if checks.count(s.decode_tokens, "decode_tokens") < 2 or len({*s.lengths}) < 2:
        raise InputError("TPOT needs at least 2 decode_tokens, and a line of TTFT at least 2 different lengths")
    if max(s.lengths) + s.decode_tokens > CONTEXT or s.prompt_tokens + s.decode_tokens > CONTEXT // 2:
        raise InputError(f"lengths with decode_tokens must be at most {CONTEXT}, prompt_tokens half as many")
    if len(checks.tokens(s.race_tokens, "race_tokens")) != 2 or s.race_tokens[0] > s.race_tokens[1]:
        raise InputError(f"race_tokens must be the least and the most tokens of a prompt, got {s.race_tokens!r:.80}")
    objective_races.check(s)
    checks.instance_of(s.evaluate, bool, "evaluate")
    checks.instance_of(s.classifier, str, "classifier")
    non_negative_int(s.seed, "seed")


def _asked(s: Any, evaluates: bool) -> list[Asked]:
    if not evaluates:
        return objective_answers.plain_prompts([s.prompt_tokens] * s.test, s.seed)
    return [one for task in TASKS for one in objective_answers.task_prompts(task, s.calibration, s.test, s.seed)]


def _race_prompts(races: int, tokens: Sequence[int], seed: int) -> list[Ids]:
    """Prompts for the races, of lengths at equal steps from the least to the most, in a random order."""
    lengths = np.linspace(tokens[0], tokens[-1], races).round().astype(int)
    mixed = np.random.default_rng(seed).permutation(lengths).tolist()
    return [one.ids for one in objective_answers.plain_prompts(mixed, seed)]


def _reference(evaluate: bool) -> Tables:
    """The tables KNOWN of the committed reference, unless it is to be measured or there is none."""
    if len(tables(evaluate)) == 1:
        return {}
    try:
        return {name: pd.read_csv(REFERENCE / f"{name}.csv") for name in KNOWN}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{REFERENCE} is not the reference it was: {error}; `git checkout data`") from None


def _frequencies(asked: Sequence[Asked], reference: Tables) -> Frequencies:
    """Those counted on the calibration questions, or of the reference; without either on the prompts themselves."""
    if reference:
        return objective_answers.frequencies_of(reference["frequencies"])
    texts = [one.text for one in asked if one.split == CALIBRATION]
    return objective_answers.counted(texts or [one.text for one in asked])


def _trained(known: Tables, frequencies: Frequencies) -> Classifier | None:
    """The classifier that estimates which pair is likely right, saved beside the levels; None without answers."""
    if not known or known["answers"].empty:
        return None
    classifier = train_right(outcomes(known["answers"], known["prompts"], CALIBRATION))
    classifier.save(LEVELS / "classifier.npz", model.smollm2_path())
    frequencies.save(LEVELS / "frequencies.npz", model.smollm2_path())
    return classifier


def outcomes(answers: pd.DataFrame, prompts: pd.DataFrame, split: str) -> Outcomes:
    """The outcomes of the questions of a split, from the tables of a measurement."""
    some = prompts[prompts.split == split]
    return Outcomes.of(answers[answers.question.isin(some.question)], some)


def latency_model(found: Mapping[str, pd.DataFrame], shares: Sequence[float]) -> LatencyModel:
    """The latency of every pair, from the tables latency, scoring, and deciding if it is there."""
    trials, scoring = found["latency"], found["scoring"]
    rows = scoring[scoring.method == FREQUENCIES]
    token_s, fixed_s = np.maximum(np.polyfit(rows.prompt_tokens, rows.seconds, 1), 0.0)
    decision_s = float(found["deciding"].seconds.mean()) if "deciding" in found else 0.0
    return LatencyModel.fit(
        trials.percent,
        trials.prompt_tokens,
        trials.ttft_s,
        trials.tpot_s.fillna(trials.groupby("percent").tpot_s.transform("mean")),  # of answers of one token
        scoring_s=(float(fixed_s), float(token_s)),
        decision_s=decision_s,
        shares=tuple(shares),
    )


async def _live(run: Run, levels: Mapping[int, Level], sent: Sequence[Asked], choice: Choice) -> Tables:
    """Trials of every level, of scorers and decisions, and then the requests, all in one endpoint."""
    s = run.settings
    wanted = [Objective(*one) for one in s.objectives]
    longest = max(max(s.lengths), *(len(one.ids) for one in sent))
    end = Served(levels, longest + s.decode_tokens)
    async with end:
        found = {"latency": await _trials(run, end, levels, choice.repeats)}
        found["scoring"] = _scoring(run, levels, choice.frequencies)
        decider = Decider(choice.frequencies, latency_model(found, s.shares), choice.classifier)
        seconds = run.piece_now("deciding", partial(_deciding, decider, sent, wanted))
        found["deciding"] = pd.DataFrame(enumerate(seconds), columns=["prompt", "seconds"])
        decider = replace(decider, latency=latency_model(found, s.shares))
        found["objectives"] = _objectives(decider.latency, sent, wanted)
        traces = []
        for k, alpha in enumerate(s.alphas):
            rng = np.random.default_rng([s.seed, k])
            asked = objective_requests.trace(sent, wanted, choice.requests, alpha, rng)
            rows = list[Any]()
            for first in range(0, len(asked), TOGETHER):
                take = partial(_answered, end, decider, asked[first : first + TOGETHER], s.decode_tokens)
                rows += await run.piece(f"requests {first} of trace {k}", take)
            table = _described(pd.DataFrame(rows), asked, decider.latency, alpha)
            traces.append(objective_requests.queued(table, s.utilisation, rng))
    found["requests"] = objective_requests.judged(pd.concat(traces), found["latency"], decider.latency)
    return found


async def _trials(run: Run, end: Served, levels: Mapping[int, Level], repeats: int) -> pd.DataFrame:
    """TTFT and TPOT of every level, in random order; each level has answered once before."""
    s, rows = run.settings, []
    text = objective_answers.plain_text(max(s.lengths))
    for m in levels:
        await end.answer(m, text[: min(s.lengths)], 1)
    trials = [*product(levels, s.lengths, range(repeats))]
    for m, length, repeat in np.random.default_rng(s.seed).permutation(trials).tolist():
        take = partial(end.trial, m, text[:length], s.decode_tokens)
        timed = await run.piece(f"latency of {m} at {length} tokens, trial {repeat}", take)
        rows.append({"percent": m, "prompt_tokens": length, "repeat": repeat} | timed)
    keys = ["percent", "prompt_tokens", "repeat"]
    return pd.DataFrame(rows).sort_values(keys, ascending=[False, True, True], ignore_index=True)


def _scoring(run: Run, levels: Mapping[int, Level], frequencies: Frequencies) -> pd.DataFrame:
    """Seconds that each scorer takes for prompts of each length."""
    s, rows = run.settings, list[Any]()
    text = objective_answers.plain_text(max(s.lengths))

    def take() -> list[tuple[str, int, float]]:
        timed = []
        for (name, scorer), length in product(scorers.items(), s.lengths):
            calls = 1 if name == objective_answers.SELF_INFORMATION else CALLS
            start = time.perf_counter()
            for _ in range(calls):
                scorer(text[:length])
            timed.append((name, length, (time.perf_counter() - start) / calls))
        return timed

    with objective_answers.opened(levels[min(levels)], CONTEXT) as llama:
        scorers = objective_answers.scorers(frequencies, llama, s.seed)
        for scorer in scorers.values():
            scorer(text[: min(s.lengths)])  # the first call is slower
        for repeat in range(s.repeats):
            rows += [(*one, repeat) for one in run.piece_now(f"scoring {repeat}", take)]
    return pd.DataFrame(rows, columns=["method", "prompt_tokens", "seconds", "repeat"])


def _deciding(decider: Decider, sent: Sequence[Asked], objectives: Sequence[Objective]) -> list[float]:
    """Mean seconds of a decision, for each prompt."""
    rows = []
    for one in sent:
        scores, unknown = decider.frequencies.scores(one.ids), decider.frequencies.unknown(one.ids)
        start = time.perf_counter()
        for objective in objectives:
            decider.pair(scores, unknown, objective, int(one.protected.sum()))
        rows.append((time.perf_counter() - start) / len(objectives))
    return rows


def _objectives(latency: LatencyModel, sent: Sequence[Asked], objectives: Sequence[Objective]) -> pd.DataFrame:
    """How many prompts each objective is feasible for; InputError if none is feasible for any."""
    tokens = np.array([len(one.ids) for one in sent])
    protected = np.array([one.protected.sum() for one in sent])
    first, token = (ratio.min() for ratio in latency.ratios(tokens, protected))
    rows = []
    for one in objectives:
        feasible = int(np.logical_and(*latency.meets(tokens, one, protected)).any(1).sum())
        rows.append((one.ttft, one.tpot, len(sent), feasible, first, token))
    table = pd.DataFrame(rows, columns=["ttft", "tpot", "prompts", "feasible", "least_ttft", "least_tpot"])
    if not table.feasible.any():
        latency.feasible(int(tokens[0]), objectives[0], int(protected[0]))  # which says what is feasible
    return table


async def _answered(
    end: Served, decider: Decider, asked: Sequence[tuple[Asked, Objective]], tokens: int
) -> list[dict[str, Any]]:
    return [await end.decided(decider, one, objective, tokens) for one, objective in asked]


def _described(
    rows: pd.DataFrame, asked: Sequence[tuple[Asked, Objective]], latency: LatencyModel, alpha: float
) -> pd.DataFrame:
    """Answers of a trace with what was asked, whether a pair meets the objective, and whether the level changed."""
    about = [
        {
            "alpha": alpha,
            "request": k,
            "question": one.question,
            "ttft": objective.ttft,
            "tpot": objective.tpot,
            "feasible": int(np.logical_and(*latency.meets([len(one.ids)], objective, one.protected.sum())).any()),
            "prompt_tokens": len(one.ids),
        }
        for k, (one, objective) in enumerate(asked)
    ]
    table = pd.DataFrame(about).join(rows)
    return table.assign(switched=(table.m != table.m.shift(fill_value=table.m[0])).astype(int))
