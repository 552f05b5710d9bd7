"""Forecasts of a server's next TTFT, one request ahead, and their errors.

    calls       a service's requests in order of time: time_s, series, hour, ttft_s (`traces.calls`). A series has the
                requests of one client to one host; the hour of the day is NaN where it was not recorded
    drawn       a synthetic series, where only quantiles by hour and the correlation of neighbours were published
    forecast    the forecast of every predictor for each request of the later part, from the requests before it
    errors      mean absolute error, and its reduction against a constant, the median of the training part

Every predictor works on `log(ttft_s / median)` of its series. Otherwise one slow call would raise a moving average
for the length of the window, and the absolute error, which is least at a median, would reflect the skew of TTFT.
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
WINDOW = 10  # requests in the moving average, and the fewest a series must have before the split
LAGS = 5  # earlier requests that are features of the forest and of the boosted ensemble
TREES = 200
LEAF = 10  # fewest requests in a leaf; with fewer the trees overfit single slow calls


def drawn(
    hour: ArrayLike,
    ttft: Mapping[int, TTFTDistribution],
    overall: TTFTDistribution,
    lag1_rank: float,
    rng: np.random.Generator,
) -> Floats:
    """A synthetic series of TTFT in seconds, shape (n,); within each hour it has the quantiles of that hour's F.

    The order comes from a first-order autoregressive process: the values of an hour are sorted as the process is
    there. Its coefficient is chosen so that the rank correlation of neighbouring values is `lag1_rank`. Correlation
    over longer distances, which a real series may have, is not reproduced.

    hour      the hour of each request, shape (n,), a key of `ttft`
    overall   F of all hours, by which values are spread between two quantiles of an hour
    InputError if an hour has no F, or no coefficient gives that correlation.
    """
    from scipy.optimize import brentq
    from scipy.signal import lfilter

    hours = checks.numbers(hour, "hour")
    unknown = set(np.unique(hours)) - set(ttft)
    if unknown:
        raise InputError(f"hour has {min(unknown):g}, of which there is no TTFT distribution")
    places = [np.flatnonzero(hours == one) for one in np.unique(hours)]
    values = [_samples(ttft[hours[place[0]]], overall, place.size) for place in places]
    noise = checks.generator(rng).standard_normal(hours.size)

    def series(coefficient: float) -> Floats:
        # started in its stationary state, so that early and late values have the same distribution
        steps = np.append(noise[:1], np.sqrt(1 - coefficient**2) * noise[1:])
        process = lfilter([1.0], [1.0, -coefficient], steps)
        ttft_s = np.empty(hours.size)
        for place, ascending in zip(places, values, strict=True):
            ttft_s[place[np.argsort(process[place], kind="stable")]] = ascending
        return ttft_s

    def excess(coefficient: float) -> float:
        return lag1_correlation(series(coefficient)) - lag1_rank

    low, high = excess(-0.99), excess(0.99)
    if not low <= 0 <= high:
        raise InputError(
            f"lag1_rank must lie in [{low + lag1_rank:.2f}, {high + lag1_rank:.2f}] for these hours and "
            f"distributions, got {lag1_rank}"
        )
    return series(float(brentq(excess, -0.99, 0.99, xtol=1e-6)))


def _samples(coarse: TTFTDistribution, overall: TTFTDistribution, n: int) -> Floats:
    """n ascending samples with the quantiles of `coarse` at its levels, spread between two levels as `overall` is.

    A value of a table with few levels is the largest sample of its step; if all samples of the step had that value,
    the tail would be too heavy.
    """
    k = np.arange(1, n + 1)
    rank = np.ceil(coarse.cumulative * n - 1e-3)  # of the sample that is F^-1(level); levels are rounded
    step = np.searchsorted(rank, k)
    below = np.append(0.0, rank[:-1])[step]
    share = (k - below) / (rank[step] - below)
    low, high = (np.append(overall.values_s[0], coarse.values_s)[step + more] for more in (0, 1))
    level = np.append(0.0, overall.cdf(coarse.values_s))
    between = overall.quantile(level[step] + share * (level[step + 1] - level[step]))
    return np.where(share == 1, high, np.clip(between, np.minimum(low, high), high))


def lag1_correlation(ttft_s: ArrayLike) -> float:
    """Rank correlation of each value of a series, shape (n,), with the value before it."""
    rank = pd.Series(ttft_s).rank()
    return float(rank.corr(rank.shift()))


def forecast(calls: pd.DataFrame, train: float = 0.7, *, seed: int = 0) -> pd.DataFrame:
    """The calls of the later part, with a column in seconds for each of REFERENCES and PREDICTORS.

    A forecast uses all calls before the split, and the calls of the same series up to the one it predicts. The split
    is a time, the same for all series: that of the first call after the share `train` of them. What is fitted
    (medians, the smoothing parameter, the trees, which learn from all series together) is fitted once, before it.

    calls   in order of time; a series with fewer than WINDOW calls before the split is left out
    seed    of the trees
    InputError for a TTFT that is not above 0, times that decrease, or if no series is long enough.
    """
    ttft_s = checks.seconds(calls["ttft_s"], "ttft_s").astype(np.float64)
    if ttft_s.min() <= 0 or np.any(np.diff(calls["time_s"]) < 0):
        raise InputError("calls must be in order of time and every ttft_s above 0")
    share = checks.fraction(train, "train")
    early = calls["time_s"] < calls["time_s"].iloc[min(int(share * len(calls)), len(calls) - 1)]
    training = calls[early].groupby("series")["ttft_s"]
    enough = training.size()[lambda n: n >= WINDOW].index
    if enough.empty:
        raise InputError(f"no series has {WINDOW} calls before the split, the longest has {training.size().max()}")
    included = calls["series"].isin(enough)
    calls, early = calls[included], early[included]
    median = calls["series"].map(training.median())
    deviation = np.log(calls["ttft_s"] / median).rename("deviation")
    features = _features(deviation, calls, early)
    predicted = {
        "training median": 0.0 * median,
        "training mean": np.log(calls["series"].map(training.mean()) / median),
        "last value": features["lag 1"],
        "moving average": features["moving average"],
        "exponential smoothing": features["exponential smoothing"],
        **_trees(deviation, features.dropna(axis=1, how="all"), early, seed),
    }
    predicted = {name: median * np.exp(value) for name, value in predicted.items()}
    return calls.assign(**predicted)[~early].reset_index(drop=True)


def _features(deviation: pd.Series, calls: pd.DataFrame, early: pd.Series) -> pd.DataFrame:
    """Features of each call: the calls before it in its series, and the hour."""
    series = deviation.groupby(calls["series"])
    features = pd.DataFrame({f"lag {k}": series.shift(k) for k in range(1, LAGS + 1)})
    features["moving average"] = series.transform(lambda one: one.shift().rolling(WINDOW, min_periods=1).mean())
    features["exponential smoothing"] = series.transform(lambda one: _smoothed(one, early[one.index]))
    features["hour"] = calls["hour"]
    return features


def _smoothed(values: pd.Series, early: pd.Series) -> pd.Series:
    from statsmodels.tsa.holtwinters import SimpleExpSmoothing

    start = float(values[early].iloc[:WINDOW].mean())
    model = SimpleExpSmoothing(values[early].to_numpy(), initialization_method="known", initial_level=start)
    weight = float(model.fit().params["smoothing_level"])
    # statsmodels forecasts from the last fitted value on; the same recursion is continued over the later part
    levels = pd.Series([start, *values]).ewm(alpha=max(weight, 1e-9), adjust=False).mean()
    return pd.Series(levels.to_numpy()[:-1], index=values.index)


def _trees(deviation: pd.Series, features: pd.DataFrame, early: pd.Series, seed: int) -> dict[str, pd.Series]:
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

    models = {
        "random forest": RandomForestRegressor(TREES, min_samples_leaf=LEAF, random_state=seed),
        "gradient boosting": GradientBoostingRegressor(
            loss="absolute_error", learning_rate=0.05, n_estimators=TREES, min_samples_leaf=LEAF, random_state=seed
        ),
    }
    complete = features.notna().all(axis=1)
    fit, later = complete & early, complete & ~early
    predicted = {}
    for name, model in models.items():
        model.fit(features[fit].to_numpy(), deviation[fit].to_numpy())
        predicted[name] = pd.Series(model.predict(features[later].to_numpy()), index=features.index[later])
    return predicted


def errors(forecasts: pd.DataFrame, replicates: int = 1000, *, seed: int = 0) -> pd.DataFrame:
    """One row per forecast of `forecast`'s table: forecast, n, mae_s, mape, cut, cut_low, cut_high.

    mape   mean of the absolute error over the TTFT, in percent
    cut    reduction of the mean absolute error against that of the training median, in percent; negative where the
           error is larger. Its 95 % band comes from a block bootstrap (`blocks`).
    """
    names, ttft_s = [*REFERENCES, *PREDICTORS], forecasts[["ttft_s"]].to_numpy()
    error_s = np.abs(forecasts[names].to_numpy() - ttft_s)
    resampled = error_s[blocks(len(error_s), replicates, np.random.default_rng(seed))].mean(axis=1)
    low, high = np.quantile(100 * (1 - resampled / resampled[:, :1]), [0.025, 0.975], axis=0)
    return pd.DataFrame(
        {
            "forecast": names,
            "n": len(error_s),
            "mae_s": error_s.mean(axis=0),
            "mape": 100 * (error_s / ttft_s).mean(axis=0),
            "cut": 100 * (1 - error_s.mean(axis=0) / error_s[:, 0].mean()),
            "cut_low": low,
            "cut_high": high,
        }
    )


def blocks(n: int, replicates: int, rng: np.random.Generator) -> Ints:
    """Positions of a circular block bootstrap of n calls in order, shape (replicates, n).

    Blocks of about `2 n^(1/3)` neighbours stay together, which preserves their correlation.
    """
    length = min(n, round(2 * n ** (1 / 3)))
    first = checks.generator(rng).integers(n, size=(replicates, -(-n // length), 1))
    positions: NDArray[np.int64] = (first + np.arange(length)).reshape(replicates, -1)[:, :n] % n
    return positions
