"""What the choice of (p, m) for each request costs and buys: pairs, objectives, policies, compressions, requests."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from artifact.elastic import policies
from artifact.elastic.policies import BASELINES, PAPER
from artifact.measure import objective_live, objective_requests
from artifact.measure import objectives as measuring
from artifact.measure.objective_answers import CALIBRATION, FREQUENCIES, METHODS, RANDOM, TEST
from artifact.measure.store import Measured
from disco_core.checks import Floats
from disco_core.systems.elastic import LatencyModel, Objective
from disco_core.systems.elastic.decision import WHOLE

PAPER_HEAD = 0.02  # h of a model of 7 billion parameters, about
CHANCE = {"ARC-Easy": 25, "PIQA": 50, "OpenBookQA": 25}  # accuracy (%) of a choice at random
ALL = "all"
NONE = "none"
MISSING = "measured without evaluation, which `make objectives` adds"
HEADERS = {  # what a reader sees in place of a column's name
    "pairs": "pairs that meet it",
    "feasible_share": "prompts that can be met (%)",
    "m_7b": "m of a 7B model (%)",
    "p_7b": "p of a 7B model (%)",
    "in_time_text": "right and in time (%)",
    "met": "in time (%)",
    "accuracy": "right (%)",
    "p": "mean p",
    "m": "mean m (%)",
    "accuracy_text": "right (%)",
    "milliseconds": "scoring (ms)",
    "ttft": "TTFT / whole prompt's",
}


def evaluated(measured: Measured) -> bool:
    """Whether a measurement has answers to questions, which need public texts and most of an hour."""
    return not measured["answers"].empty


def latency(measured: Measured) -> LatencyModel:
    """The latency of every pair by the measured trials."""
    return objective_live.latency_model(measured.tables, measured.settings["shares"])


def asked_for(measured: Measured) -> list[Objective]:
    """The objectives, the tightest last."""
    return [Objective(*one) for one in measured.settings["objectives"]]


def pairs(measured: Measured, replicates: int, seed: int) -> pd.DataFrame:
    """Of each pair: p, m; ttft and tpot, ratios to the whole model's at the median prompt, with scoring and
    decision; and accuracy (%) on test questions with its 95 % band, NaN without evaluation.
    """
    model, prompts = latency(measured), measured["prompts"]
    middle = prompts[prompts.split != CALIBRATION][["tokens", "protected"]].median().astype(int)
    first, token = (ratio[0] for ratio in model.ratios(int(middle.tokens), int(middle.protected)))
    table = pd.DataFrame(model.pairs).assign(ttft=first, tpot=token)
    if not evaluated(measured):
        return table.assign(accuracy=np.nan, accuracy_low=np.nan, accuracy_high=np.nan)
    tested = measuring.outcomes(measured["answers"], prompts, TEST)
    bands = _bands(100 * tested.right.astype(float), replicates, seed, "accuracy")
    return table.merge(pd.DataFrame(tested.pairs).join(bands), on=["p", "m"])


def tasks(measured: Measured) -> pd.DataFrame:
    """Of each task the whole model's accuracy (%) on test questions with the whole prompt, and chance."""
    rows = measured["answers"].merge(measured["prompts"], on="question")
    whole = rows[(rows.p == 1) & (rows.m == WHOLE) & (rows.split == TEST)]
    found = 100 * whole.groupby("task", sort=False).right.mean()
    return pd.DataFrame({"accuracy": found, "chance": found.index.map(CHANCE)}).reset_index()


def possible(measured: Measured) -> pd.DataFrame:
    """Of each objective: the share (%) of the prompts that it can be met for, how many pairs meet it for the median
    prompt, the least ratios that there are here, and what a model of 7B parameters may have: m (%) by its TPOT,
    `h + (1 - h) m`, and p (%) by `p m <= zeta_TTFT`.
    """
    table, model, prompts = measured["objectives"], latency(measured), measured["prompts"]
    middle = prompts[prompts.split != CALIBRATION][["tokens", "protected"]].median().astype(int)
    pairs = [
        int(np.logical_and(*model.meets([int(middle.tokens)], Objective(*one), int(middle.protected))).sum())
        for one in zip(table.ttft, table.tpot, strict=True)
    ]
    m = ((table.tpot - PAPER_HEAD) / (1 - PAPER_HEAD)).clip(0, 1)
    return table.assign(
        objective=[str(Objective(one.ttft, one.tpot)) for one in table.itertuples()],
        feasible_share=100 * table.feasible / table.prompts,
        pairs=pairs,
        m_7b=100 * m,
        p_7b=100 * (table.ttft / m).clip(0, 1),
    )


def requests(measured: Measured) -> pd.DataFrame:
    """The requests with objective (its name), met (0 or 1), met_queued (the same from the arrival), strict (the same
    against the whole model's fitted latency, not the one that it keeps in 95 % of its trials), and right, NaN if not
    evaluated.
    """
    rows, whole = measured["requests"], latency(measured).levels[WHOLE]
    first_s = whole.ttft(rows.prompt_tokens.to_numpy(np.int64))
    strict = (rows.ttft_s <= rows.ttft * first_s) & ~(rows.tpot_s * whole.decode_rate > rows.tpot)
    table = rows.assign(
        objective=[str(Objective(one.ttft, one.tpot)) for one in rows.itertuples()],
        met=rows.met_ttft * rows.met_tpot,
        met_queued=((rows.queued_ttft_s <= rows.ttft * rows.whole_ttft_s) & (rows.met_tpot == 1)).astype(int),
        strict=strict.astype(int),
    )
    if not evaluated(measured):
        return table.assign(right=np.nan)
    return table.merge(measured["answers"], on=["question", "p", "m"], how="left")


def whole_factors(measured: Measured) -> tuple[float, float]:
    """What the whole model's TTFT and TPOT keep in 95 % of its trials among the requests, over the fitted ones."""
    return objective_requests.whole_factors(measured["whole"], latency(measured))


def met(table: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """From a table of `requests`, of each alpha and objective and of all: requests, whether the objective can be
    met, met (%) with its 95 % band, met_queued, strict, met_ttft, met_tpot, right and switched (%), means of p and m,
    and mean TTFT without and with the time in the queue.
    """
    means = ["met_queued", "strict", "met_ttft", "met_tpot", "right", "switched"]
    others = ["p", "m", "ttft_s", "queued_ttft_s"]
    # an objective that can be met for some prompts alone has a row for these, and one for the others
    groups = [*table.groupby(["alpha", "objective", "feasible"], sort=False)]
    groups += [((alpha, ALL, 1), part) for alpha, part in table[table.feasible == 1].groupby("alpha", sort=False)]
    out = []
    for (alpha, objective, feasible), part in groups:
        row = {"alpha": alpha, "objective": objective, "feasible": feasible, "requests": len(part)}
        row |= _bands(100 * part[["met"]].to_numpy(float), replicates, seed, "met").iloc[0].to_dict()
        out.append(row | (100 * part[means].mean()).to_dict() | part[others].mean().to_dict())
    return pd.DataFrame(out)


def met_share(table: pd.DataFrame) -> float:
    """Of the requests with an objective that can be met, the share (%) that are met; NaN if there are none."""
    return float(100 * table[table.feasible == 1].met.mean())


def requests_said(measured: Measured, table: pd.DataFrame) -> str:
    """What a table of `requests` says, in sentences."""
    feasible = table[table.feasible == 1]
    by_alpha = ", ".join(f"alpha {one:g}: {100 * part.met.mean():.0f} %" for one, part in feasible.groupby("alpha"))
    first, token = whole_factors(measured)
    said = [
        f"{met_share(table):.1f} % of the {len(feasible)} requests whose objective can be met are in time "
        f"({by_alpha}).",
        f"Without the allowance, which is {first:.2f} times the fitted TTFT and {token:.2f} times the TPOT, "
        f"{100 * feasible.strict.mean():.0f} % are.",
        f"Counted from the arrival, with a device busy {100 * measured.settings['utilisation']:.0f} % of the time, "
        f"{100 * feasible.met_queued.mean():.0f} % are.",
        f"From request to request the level changes in {100 * table.switched.mean():.0f} %.",
    ]
    if evaluated(measured):
        said.append(f"{100 * feasible.right.mean():.0f} % get a pair that answers rightly.")
    return " ".join(said)


def choices(measured: Measured, seed: int) -> pd.DataFrame:
    """What every policy chooses for the test questions, as `policies.choices` has it, with the name of the objective
    and in_time, 1 for a right answer within the objective.
    """
    calibration, tested = (
        measuring.outcomes(measured["answers"], measured["prompts"], split) for split in (CALIBRATION, TEST)
    )
    rng = np.random.default_rng(seed)
    rows = policies.choices(calibration, tested, latency(measured), asked_for(measured), rng=rng)
    names = [str(Objective(*one)) for one in zip(rows.ttft, rows.tpot, strict=True)]
    return rows.assign(objective=names, in_time=rows.met * rows.right)


def by_objective(rows: pd.DataFrame) -> pd.DataFrame:
    """From a table of `choices`: of each objective that can be met and each policy in_time, met and right (%)."""
    kept = rows[rows.feasible]
    return (100 * kept.groupby(["objective", "policy"], sort=False)[["in_time", "met", "right"]].mean()).reset_index()


def compared(rows: pd.DataFrame, replicates: int, seed: int) -> pd.DataFrame:
    """From a table of `choices`, of each policy: in_time (%) with its 95 % band, met and accuracy (%), means of p and
    m, and gain, by how many points in_time is above that of the best baseline, with its band.

    All are means over the objectives that some pair meets, each over the questions for which one does.
    """
    wide = rows.pivot(index="question", columns=["policy", "objective"], values="in_time")
    drawn = 100 * _means(wide.to_numpy(float), replicates, seed)
    names = wide.columns.get_level_values("policy")
    order = list(dict.fromkeys(rows.policy))
    of_policy = np.stack([np.nanmean(drawn[:, names == name], axis=1) for name in order], axis=1)
    best = of_policy[:, [order.index(name) for name in BASELINES]].max(1, keepdims=True)
    table = pd.DataFrame({"policy": order}).join(_quantiles(of_policy, "in_time"))
    table = table.join(_quantiles(of_policy - best, "gain"))
    means = rows[rows.feasible].groupby(["policy", "objective"], sort=False)[["met", "right", "p", "m"]].mean()
    means = means.groupby("policy").mean().rename(columns={"right": "accuracy"})
    means[["met", "accuracy"]] *= 100
    return table.merge(means.reset_index(), on="policy")


def gain(table: pd.DataFrame, policy: str = PAPER) -> float:
    """Points that a policy is above the best baseline, from a table of `compared`."""
    return float(table.set_index("policy").gain[policy])


def best_baseline(table: pd.DataFrame) -> str:
    """The baseline with the most right answers in time, from a table of `compared`."""
    some = table[table.policy.isin(BASELINES)].set_index("policy").in_time
    return str(some.idxmax())


def compression(measured: Measured, replicates: int, seed: int) -> pd.DataFrame:
    """Of each way to compress and each p: accuracy (%) of the whole model on test questions with its 95 % band,
    milliseconds that scoring takes for the median prompt, and ttft, that of the compressed prompt with its scores
    over that of the whole prompt; and over_random, by how many points accuracy is above that of random tokens with
    the same p, with its band over the same questions.
    """
    prompts, answers = measured["prompts"], measured["answers"]
    tested = prompts[prompts.split == TEST]
    known = answers[(answers.m == WHOLE) & answers.question.isin(tested.question)]
    known = known.assign(method=np.where(known.p == 1, NONE, FREQUENCIES)).drop(columns="m")
    rows = pd.concat([known, measured["compression"]], ignore_index=True)
    order = [(NONE, 1.0), *((name, p) for name in METHODS for p in sorted(known.p[known.p < 1].unique())[::-1])]
    wide = rows.pivot(index="question", columns=["method", "p"], values="right")[order]
    table = pd.DataFrame(order, columns=["method", "p"])
    drawn = _means(100 * wide.to_numpy(float), replicates, seed)
    at = [order.index((RANDOM, p)) if p < 1 else k for k, (_, p) in enumerate(order)]
    table = table.join(_quantiles(drawn, "accuracy")).join(_quantiles(drawn - drawn[:, at], "over_random"))
    tokens, protected = (int(one) for one in tested[["tokens", "protected"]].median())
    seconds = [scoring_s(measured, method, tokens) for method in table.method]
    whole = latency(measured).levels[WHOLE]
    left = [whole.ttft(max(int(np.ceil(p * tokens)), protected)) for p in table.p]
    return table.assign(milliseconds=1e3 * np.array(seconds), ttft=(np.array(left) + seconds) / whole.ttft(tokens))


def scoring_s(measured: Measured, method: str, tokens: int) -> float:
    """Seconds that a scorer takes for a prompt: in the requests, or by a line through its times; 0 for no scorer."""
    if method == FREQUENCIES:
        return float(measured["requests"].scoring_s.median())
    rows = measured["scoring"][measured["scoring"].method == method]
    if rows.empty:
        return 0.0
    return max(0.0, float(np.polyval(np.polyfit(rows.prompt_tokens, rows.seconds, 1), tokens)))


def grid(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of `pairs` with a row for each p, the largest first, and a column for each m, the smallest first."""
    return table.pivot(index="p", columns="m", values=column).sort_index(ascending=False)


def _means(values: Floats, replicates: int, seed: int) -> Floats:
    """Means of the columns without their NaN, shape (1 + replicates, columns): over the rows, and over rows drawn
    with replacement, the same for all columns; NaN for a column of which none was drawn.
    """
    n = len(values)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=replicates)
    weights = np.vstack([np.ones(n), drawn]).astype(float)
    there: NDArray[np.float64] = weights @ ~np.isnan(values)
    total: NDArray[np.float64] = weights @ np.nan_to_num(values)
    return np.where(there > 0, total / np.maximum(there, 1), np.nan)


def _quantiles(drawn: Floats, name: str) -> pd.DataFrame:
    """The first line, and the middle 95 % of the others."""
    low, high = np.nanquantile(drawn[1:], [0.025, 0.975], axis=0) if len(drawn) > 1 else np.full((2, 1), np.nan)
    return pd.DataFrame({name: drawn[0], f"{name}_low": low, f"{name}_high": high})


def _bands(values: Floats, replicates: int, seed: int, name: str) -> pd.DataFrame:
    """The mean of each column with its 95 % band, one row for each column: bootstrap over rows."""
    return _quantiles(_means(values, replicates, seed), name)
