"""The timed part of measuring the decision: trials of every level, of scorers and of decisions, and the requests."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from artifact.measure import objective_answers, objective_requests
from artifact.measure.elastic_scores import CONTEXT
from artifact.measure.objective_answers import FREQUENCIES, Asked
from artifact.measure.objective_requests import Decider, Served
from artifact.measure.pieces import Run, Tables
from disco_core.systems.compression import Frequencies
from disco_core.systems.elastic import Classifier, LatencyModel, Level, Objective
from disco_core.systems.elastic.decision import WHOLE

TOGETHER, TRIALS = 20, 2  # requests of a piece, and trials of the whole model among them
CALLS = 50  # of a scorer that takes microseconds


class Choice(NamedTuple):
    """What requests are decided by, trials of each level and length, and requests of each trace."""

    frequencies: Frequencies
    classifier: Classifier | None
    repeats: int
    requests: int


def latency_model(found: Mapping[str, pd.DataFrame], shares: Sequence[float]) -> LatencyModel:
    """The latency of every pair, with what scoring and deciding take in the requests; before these, alone."""
    trials, decision_s = found["latency"], 0.0
    if "requests" in found:
        rows = found["requests"]
        token_s, fixed_s, decision_s = 0.0, float(rows.scoring_s.median()), float(rows.decision_s.median())
    else:
        rows = found["scoring"][found["scoring"].method == FREQUENCIES]
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


async def measured(run: Run, levels: Mapping[int, Level], sent: Sequence[Asked], choice: Choice) -> Tables:
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
        traces, whole = [], list[Any]()
        for k, alpha in enumerate(s.alphas):
            rng = np.random.default_rng([s.seed, k])
            asked = objective_requests.trace(sent, wanted, choice.requests, alpha, rng)
            rows = list[Any]()
            for first in range(0, len(asked), TOGETHER):
                lengths = rng.choice(s.lengths, TRIALS).tolist()
                take = partial(_answered, end, decider, asked[first : first + TOGETHER], lengths, s.decode_tokens)
                answers, trials = await run.piece(f"requests {first} of trace {k}", take)
                rows, whole = rows + answers, whole + trials
            traces.append(objective_requests.queued(_described(rows, asked, alpha), s.utilisation, rng))
    found["whole"] = pd.DataFrame(whole)
    found["requests"] = objective_requests.judged(pd.concat(traces), found["whole"], decider.latency)
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
    end: Served, decider: Decider, asked: Sequence[tuple[Asked, Objective]], lengths: Sequence[int], tokens: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the requests, and of trials of the whole model with prompts of these lengths, which come in between."""
    rows, trials = list[dict[str, Any]](), list[dict[str, Any]]()
    text = objective_answers.plain_text(max(lengths))
    for k, (one, objective) in enumerate(asked):
        rows.append(await end.decided(decider, one, objective, tokens))
        if k % -(-len(asked) // len(lengths)) == 0:
            length = lengths[len(trials)]
            trials.append({"prompt_tokens": length} | await end.trial(WHOLE, text[:length], tokens))
    return rows, trials


def _described(
    rows: Sequence[dict[str, Any]], asked: Sequence[tuple[Asked, Objective]], alpha: float
) -> pd.DataFrame:
    """Answers of a trace with what was asked, and whether the level changed."""
    about = [
        {
            "alpha": alpha,
            "request": k,
            "question": one.question,
            "ttft": objective.ttft,
            "tpot": objective.tpot,
            "prompt_tokens": len(one.ids),
        }
        for k, (one, objective) in enumerate(asked)
    ]
    table = pd.DataFrame(about).join(pd.DataFrame(rows))
    return table.assign(switched=(table.m != table.m.shift(fill_value=table.m[0])).astype(int))
