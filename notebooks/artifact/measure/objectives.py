"""ElastiLM's decision on this machine: requests with objectives, answered live with the pair (p, m) chosen for each.

    latency      percent, prompt_tokens, repeat, ttft_s, tpot_s: trials of every level in its endpoint; one thread
    whole        prompt_tokens, ttft_s, tpot_s: trials of the whole model among the requests
    scoring      method, prompt_tokens, repeat, seconds that scoring a prompt takes
    deciding     prompt, seconds that a decision takes
    frequencies  first, second, count: of tokens and of pairs of tokens in the calibration questions
    prompts      question, task, split, tokens, protected, and the features of each prompt
    objectives   ttft, tpot, prompts, feasible (of these), least_ttft, least_tpot: the least ratios that there are
    requests     alpha, request, question, ttft, tpot (the objective), feasible, prompt_tokens, kept, p, m, switched,
                 scoring_s (with compression), decision_s, ttft_s from the start, queued_ttft_s from the arrival,
                 tokens, tpot_s, service_s, arrival_s, start_s, whole_ttft_s, whole_tpot_s (what objectives are
                 relative to), met_ttft, met_tpot
    answers      question, p, m, right; if evaluated
    compression  method, p, question, right, with the whole model; if evaluated
    races        policy, device ("whole" or "levels"), request, prompt_tokens, level (that the plan asks for), held_s
                 (the emulated network delay), predicted_s (TTFT in the simulator), and the record of the answer;
                 where it moves up to the whole model, the columns of the server are the level's

Without evaluation the prompts are made of the committed ones, a tenth of requests and races is sent, and pairs are
chosen by a classifier trained on the committed reference's answers; without a reference, the heaviest feasible one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from artifact.data import model
from artifact.elastic.labels import Outcomes, train_right
from artifact.errors import ArtifactError
from artifact.files import DATA, ROOT
from artifact.measure import objective_answers, objective_live, objective_races
from artifact.measure.answers import run_in_thread
from artifact.measure.elastic import LEVELS, made_levels
from artifact.measure.elastic_scores import CONTEXT, TASKS, Ids, missing
from artifact.measure.objective_answers import CALIBRATION, Asked
from artifact.measure.objective_live import TOGETHER, Choice, latency_model
from artifact.measure.pieces import Run, Tables
from disco_core import checks
from disco_core.endpoints.base import non_negative_int
from disco_core.errors import InputError
from disco_core.systems.compression import Frequencies
from disco_core.systems.elastic import Classifier, Level, Objective
from disco_core.systems.elastic.decision import FEATURES

REFERENCE = DATA / "measured" / "objectives"
KNOWN = ("answers", "prompts", "frequencies")  # of the reference, by which pairs are chosen without evaluation
FEWER = 10  # the part of the requests that is sent without evaluation


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
    given = _given(s, levels)
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
    classifier = given or _trained(found if evaluates else reference)
    if classifier and not s.quick:
        classifier.save(LEVELS / "classifier.npz", model.smollm2_path())
        frequencies.save(LEVELS / "frequencies.npz", model.smollm2_path())
    sent = [one for one in asked if one.split != CALIBRATION]
    choice = Choice(frequencies, classifier, repeats, requests)
    found |= run_in_thread(objective_live.measured(run, levels, sent, choice))
    profiles, raced = latency_model(found, s.shares).levels, _race_prompts(races, s.race_tokens, s.seed)
    return found | run_in_thread(objective_races.raced(run, levels, profiles, raced))


def fingerprint(classifier: str) -> str:
    """The sha256 of a classifier's file, "" for none, so that another one in its place is measured anew."""
    try:
        return hashlib.sha256((ROOT / classifier).read_bytes()).hexdigest() if classifier else ""
    except OSError as error:
        raise InputError(f"the classifier {classifier} cannot be read: {error.strerror}") from None


def _given(s: Any, levels: Mapping[int, Level]) -> Classifier | None:
    """The classifier that the settings name, if there is one; InputError if it cannot choose among these pairs."""
    if not s.classifier:
        return None
    found = Classifier.load(ROOT / s.classifier, model.smollm2_path(), levels)
    if found.mean.size != len(FEATURES):
        raise InputError(f"{s.classifier} was trained on {found.mean.size} features, not on {len(FEATURES)}")
    if unknown := {float(p) for p in s.shares} - {pair.p for pair in found.pairs}:
        raise InputError(f"{s.classifier} does not know the share {min(unknown):g} of a prompt")
    return found


def _check(s: Any) -> None:
    wrong = [one for one in s.percents if isinstance(one, bool) or not isinstance(one, int) or not 0 < one < 100]
    if wrong or not s.percents:
        raise InputError(f"percents must be whole numbers from 1 to 99, got {s.percents!r:.80}")
    shares = [checks.number(p, "shares", 0.0, 1.0, above=True) for p in s.shares]
    if len({*shares}) < max(2, len(shares)) or 1 not in shares or any(p != round(p, 6) for p in shares):
        raise InputError(
            f"shares must be different numbers of at most 6 decimals, 1 and smaller ones, got {s.shares!r:.80}"
        )
    if not s.objectives or any(not isinstance(one, list) or len(one) != 2 for one in s.objectives):
        raise InputError(f"objectives must be pairs [zeta_TTFT, zeta_TPOT], got {s.objectives!r:.80}")
    if len({str(Objective(*one)) for one in s.objectives}) < len(s.objectives):
        raise InputError(f"objectives must be different ones, got {s.objectives!r:.80}")
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


def _trained(known: Tables) -> Classifier | None:
    """The classifier that estimates which pair is likely right; None without answers."""
    if not known or known["answers"].empty:
        return None
    return train_right(outcomes(known["answers"], known["prompts"], CALIBRATION))


def outcomes(answers: pd.DataFrame, prompts: pd.DataFrame, split: str) -> Outcomes:
    """The outcomes of the questions of a split, from the tables of a measurement."""
    some = prompts[prompts.split == split]
    return Outcomes.of(answers[answers.question.isin(some.question)], some)
