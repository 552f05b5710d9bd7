"""Forecasts of a server's next TTFT, one request ahead, and what they are off by.

    calls       a service's requests in order of time: time_s, series, hour, ttft_s (`traces.calls`). A series is what
                one client sees of one host; the hour of the day is NaN where nobody noted it
    drawn       a series that has given quantiles by hour and a given memory, where only those two were published
    forecast    what every predictor says of each request of the later part, from the requests before it
    errors      mean absolute error, and how much of it a forecast saves against a median that never changes

Every predictor works on `log(ttft_s / median)` of its own series: else one slow call would lift a moving average for
as long as the window is, and the absolute error, which is least at a median, would tell how skewed TTFT is.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from disco_core import checks
from disco_core.checks import Floats, Ints
from disco_core.errors import InputError
from disco_core.latency import TTFTDistribution

REFERENCES = ("training median", "training mean", "last value")
PREDICTORS = ("moving average", "exponential smoothing", "random forest", "gradient boosting")
WINDOW = 10  # requests in the moving average, and the fewest a series must have to be learned from
LAGS = 5  # earlier requests that a forest and a boosted ensemble see one by one
TREES = 200
LEAF = 10  # fewest requests in a leaf: with fewer the trees learn single slow calls by heart


def drawn(
    hour: ArrayLike,
    ttft: Mapping[int, TTFTDistribution],
    whole: TTFTDistribution,
    lag1_rank: float,
    rng: np.random.Generator,
) -> Floats:
    """A made series of TTFT in seconds, shape (n,): within each hour it has the quantiles of that hour's F.

    Order comes from an autoregressive process of first order: the values of an hour are put in the order of its. Its
    coefficient is chosen so that the rank correlation of a value with the one before it is `lag1_rank` on the series
    drawn. Any longer memory a real series may have is not in it.

    hour    the hour of each request, shape (n,), a key of `ttft`
    whole   F of all hours, which says how values lie between two quantiles of an hour
    InputError where an hour has no F, or no coefficient gives that correlation.
    """
    from scipy.optimize import brentq
    from scipy.signal import lfilter

    hours = checks.numbers(hour, "hour")
    unknown = set(np.unique(hours)) - set(ttft)
    if unknown:
        raise InputError(f"hour has {min(unknown):g}, of which there is no TTFT distribution")
    at = [np.flatnonzero(hours == one) for one in np.unique(hours)]
    values = [_samples(ttft[hours[those[0]]], whole, those.size) for those in at]
    noise = checks.generator(rng).standard_normal(hours.size)

    def series(coefficient: float) -> Floats:
        # begun in its stationary state, so that early and late values are alike
        steps = np.append(noise[:1], np.sqrt(1 - coefficient**2) * noise[1:])
        process = lfilter([1.0], [1.0, -coefficient], steps)
        found = np.empty(hours.size)
        for those, own in zip(at, values, strict=True):
            found[those[np.argsort(process[those], kind="stable")]] = own
        return found

    def excess(coefficient: float) -> float:
        return memory(series(coefficient)) - lag1_rank

    low, high = excess(-0.99), excess(0.99)
    if not low <= 0 <= high:
        raise InputError(
            f"lag1_rank must lie in [{low + lag1_rank:.2f}, {high + lag1_rank:.2f}] for these hours and "
            f"distributions, got {lag1_rank}"
        )
    return series(float(brentq(excess, -0.99, 0.99, xtol=1e-6)))


def _samples(rough: TTFTDistribution, whole: TTFTDistribution, n: int) -> Floats:
    """n ascending samples with the quantiles of `rough` at its own levels, between two of these spread as `whole` is.

    A value of a table with few levels stands for a step of which it is the largest sample; taken for the whole step,
    it would make the tail too heavy.
    """
    k = np.arange(1, n + 1)
    rank = np.ceil(rough.cumulative * n - 1e-3)  # of the sample that is F^-1(level); levels are rounded
    step = np.searchsorted(rank, k)
    below = np.append(0.0, rank[:-1])[step]
    part = (k - below) / (rank[step] - below)
    low, high = (np.append(whole.values_s[0], rough.values_s)[step + more] for more in (0, 1))
    level = np.append(0.0, whole.cdf(rough.values_s))
    between = whole.quantile(level[step] + part * (level[step + 1] - level[step]))
    return np.where(part == 1, high, np.clip(between, np.minimum(low, high), high))


def memory(ttft_s: ArrayLike) -> float:
    """Rank correlation of a series, shape (n,), with itself one request before."""
    rank = pd.Series(ttft_s).rank()
    return float(rank.corr(rank.shift()))


def forecast(calls: pd.DataFrame, train: float = 0.7, *, seed: int = 0) -> pd.DataFrame:
    """The calls of the later part, with a column in seconds for each of REFERENCES and PREDICTORS.

    A forecast of a call knows the calls before the split, and of its own series all calls before it. The split is a
    moment, the same for all series: that of the first call after the share `train` of them. What is fitted (medians,
    the smoothing parameter, the trees, which learn from all series together) is fitted before it and not again.

    calls   in order of time; a series with fewer than WINDOW calls before the split is left out
    seed    of the trees
    InputError for a TTFT that is not above 0, times that go back, or when no series is long enough.
    """
    ttft_s = checks.seconds(calls["ttft_s"], "ttft_s").astype(np.float64)
    if ttft_s.min() <= 0 or np.any(np.diff(calls["time_s"]) < 0):
        raise InputError("calls must be in order of time and every ttft_s above 0")
    share = checks.fraction(train, "train")
    early = calls["time_s"] < calls["time_s"].iloc[min(int(share * len(calls)), len(calls) - 1)]
    learned = calls[early].groupby("series")["ttft_s"]
    enough = learned.size()[lambda n: n >= WINDOW].index
    if enough.empty:
        raise InputError(f"no series has {WINDOW} calls before the split, the longest has {learned.size().max()}")
    kept = calls["series"].isin(enough)
    calls, early = calls[kept], early[kept]
    level = calls["series"].map(learned.median())
    deviation = np.log(calls["ttft_s"] / level).rename("deviation")
    before = _before(deviation, calls, early)
    said = {
        "training median": 0.0 * level,
        "training mean": np.log(calls["series"].map(learned.mean()) / level),
        "last value": before["lag 1"],
        "moving average": before["moving average"],
        "exponential smoothing": before["exponential smoothing"],
        **_learned(deviation, before.dropna(axis=1, how="all"), early, seed),
    }
    said = {name: level * np.exp(value) for name, value in said.items()}
    return calls.assign(**said)[~early].reset_index(drop=True)


def _before(deviation: pd.Series, calls: pd.DataFrame, early: pd.Series) -> pd.DataFrame:
    """What is known before each call: the calls before it in its series, and the hour."""
    series = deviation.groupby(calls["series"])
    known = pd.DataFrame({f"lag {k}": series.shift(k) for k in range(1, LAGS + 1)})
    known["moving average"] = series.transform(lambda one: one.shift().rolling(WINDOW, min_periods=1).mean())
    known["exponential smoothing"] = series.transform(lambda one: _smoothed(one, early[one.index]))
    known["hour"] = calls["hour"]
    return known


def _smoothed(values: pd.Series, early: pd.Series) -> pd.Series:
    from statsmodels.tsa.holtwinters import SimpleExpSmoothing

    start = float(values[early].iloc[:WINDOW].mean())
    model = SimpleExpSmoothing(values[early].to_numpy(), initialization_method="known", initial_level=start)
    weight = float(model.fit().params["smoothing_level"])
    # statsmodels forecasts from the last fitted value on; the same recursion also runs over the later part
    levels = pd.Series([start, *values]).ewm(alpha=max(weight, 1e-9), adjust=False).mean()
    return pd.Series(levels.to_numpy()[:-1], index=values.index)


def _learned(deviation: pd.Series, before: pd.DataFrame, early: pd.Series, seed: int) -> dict[str, pd.Series]:
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

    models = {
        "random forest": RandomForestRegressor(TREES, min_samples_leaf=LEAF, random_state=seed),
        "gradient boosting": GradientBoostingRegressor(
            loss="absolute_error", learning_rate=0.05, n_estimators=TREES, min_samples_leaf=LEAF, random_state=seed
        ),
    }
    known = before.notna().all(axis=1)
    fit, later = known & early, known & ~early
    found = {}
    for name, model in models.items():
        model.fit(before[fit].to_numpy(), deviation[fit].to_numpy())
        found[name] = pd.Series(model.predict(before[later].to_numpy()), index=before.index[later])
    return found


def errors(found: pd.DataFrame, replicates: int = 1000, *, seed: int = 0) -> pd.DataFrame:
    """One row per forecast of `forecast`'s table: forecast, n, mae_s, mape, cut, cut_low, cut_high.

    mape   mean of the absolute error over the TTFT itself, in percent
    cut    of the mean absolute error, against that of the training median, in percent; negative where it is larger.
           Its 95 % band draws blocks of neighbouring calls anew (`blocks`).
    """
    names = [*REFERENCES, *PREDICTORS]
    off = np.abs(found[names].to_numpy() - found[["ttft_s"]].to_numpy())
    again = off[blocks(len(off), replicates, np.random.default_rng(seed))].mean(axis=1)
    low, high = np.quantile(100 * (1 - again / again[:, :1]), [0.025, 0.975], axis=0)
    return pd.DataFrame(
        {
            "forecast": names,
            "n": len(off),
            "mae_s": off.mean(axis=0),
            "mape": 100 * (off / found[["ttft_s"]].to_numpy()).mean(axis=0),
            "cut": 100 * (1 - off.mean(axis=0) / off[:, 0].mean()),
            "cut_low": low,
            "cut_high": high,
        }
    )


def blocks(n: int, replicates: int, rng: np.random.Generator) -> Ints:
    """Positions of a circular block bootstrap of n calls in order, shape (replicates, n).

    Blocks of about `2 n^(1/3)` neighbours stay together, so that what they have in common does too.
    """
    length = min(n, round(2 * n ** (1 / 3)))
    first = checks.generator(rng).integers(n, size=(replicates, -(-n // length), 1))
    found: NDArray[np.int64] = (first + np.arange(length)).reshape(replicates, -1)[:, :n] % n
    return found
