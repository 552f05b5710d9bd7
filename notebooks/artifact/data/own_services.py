"""Services of one's own: records in `build/services/`, shown beside the committed services when asked for by name.

build/services/NAME.csv          or .json, .jsonl: a record in any form that `artifact.pair.readers` reads
build/services/NAME.prices.json  optional: {"in": 0.15, "out": 0.6}, $ per million prompt and generated tokens

A file there changes nothing by itself: only a name that a notebook's `more_services` lists is read.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from artifact.data import traces
from artifact.data.traces import Service
from artifact.errors import ArtifactError
from artifact.files import BUILD, FIGURES, folder, relative_path
from artifact.pair import readers
from disco_core import checks
from disco_core.errors import InputError
from disco_core.latency import TTFTDistribution

FOLDER = BUILD / "services"
SOURCE = "record of one's own"
NOT_JUDGED = "No claim is judged: claims are about the committed services, and others were asked for beside them."
_SUFFIXES = (".csv", ".json", ".jsonl")
_PRICES = ".prices.json"


def names() -> list[str]:
    """Names of the services in the folder, sorted; none if there is no folder."""
    return sorted({path.stem for path in _records()})


def service(name: str) -> Service:
    """A service of one's own, as one host; its prices are NaN where no file states them.

    InputError for a name that is unknown or that a committed service has; ArtifactError where its record or its
    prices cannot be read, or two files have its name.
    """
    path = _path(name)
    found = readers.read(path)
    n, ttft = len(found), TTFTDistribution(found.ttft_s)
    price_in, price_out = _prices(name)
    return Service(name, None, "one's own", n, ttft, {"own": (n, ttft)}, price_in, price_out, SOURCE)


def added(base: Mapping[str, Service], asked: str, out: str | Path, source: str = "tables") -> dict[str, Service]:
    """The services of a notebook and, after them, those that `asked` lists, separated by commas.

    base     the notebook's own
    asked    committed names or names of files in the folder; "" for none
    out      of the exhibits; InputError if that is the committed folder and others are asked for
    source   of committed ones, as in `traces.service`
    """
    wanted = [name.strip() for name in asked.split(",") if name.strip()]
    if wanted and folder(out).resolve() == FIGURES.resolve():
        raise InputError(f"out must not be {relative_path(FIGURES)}, the committed exhibits, with more_services")
    found = dict(base)
    for name in wanted:
        own = name not in traces.services() or name in names()
        found[name] = service(name) if own else traces.service(name, source)
    return found


def beside(base: Mapping[str, Service], services: Mapping[str, Service]) -> str:
    """The sentence that a caption needs to name what was added to a notebook's own services; "" for none."""
    more = [f"{name} ({one.n:,} requests)" for name, one in services.items() if name not in base]
    return f" Beside them, as asked for: {', '.join(more)}." if more else ""


def origin(services: Mapping[str, Service]) -> str:
    """`traces.origin`, with records of one's own named last."""
    own = [one for one in services.values() if one.source == SOURCE]
    committed = traces.origin(*(one for one in services.values() if one.source != SOURCE))
    return f"{committed}; {SOURCE}" if own else committed


def priced(services: Mapping[str, Service]) -> dict[str, Service]:
    """Those whose prices are known."""
    return {name: one for name, one in services.items() if not np.isnan(one.price_in + one.price_out)}


def with_series(table: pd.DataFrame, services: Mapping[str, Service]) -> pd.DataFrame:
    """The table `ttft_series` with a row for each service of one's own: n, gap_median_s, lag1, lag1_rank."""
    rows = [_series(name) for name, one in services.items() if one.source == SOURCE]
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True) if rows else table


def _series(name: str) -> dict[str, object]:
    found = readers.read(_path(name))
    gap_s = float(np.median(np.diff(found.arrival_s)))
    ttft = pd.Series(found.ttft_s)
    same = ttft.nunique() < 2  # then there is no correlation
    lags = [np.nan, np.nan] if same else [ttft.autocorr(), ttft.rank().autocorr()]
    return {"service": name, "n": len(found), "gap_median_s": gap_s, "lag1": lags[0], "lag1_rank": lags[1]}


def _records() -> Iterable[Path]:
    files = FOLDER.iterdir() if FOLDER.is_dir() else ()
    return [one for one in files if one.suffix in _SUFFIXES and not one.name.endswith(_PRICES)]


def _path(name: str) -> Path:
    paths = sorted(path for path in _records() if path.stem == name)
    where = relative_path(FOLDER)
    if not paths:
        own = ", ".join(names()) or "none"
        raise InputError(f"no service {name!r}; committed: {', '.join(traces.services())}; in {where}: {own}")
    if name in traces.services():
        raise InputError(f"{relative_path(paths[0])} has the name of a committed service; give it another name")
    if len(paths) > 1:
        raise ArtifactError(f"{where} has {', '.join(path.name for path in paths)}; one service is one file")
    return paths[0]


def _prices(name: str) -> tuple[float, float]:
    """$ per token for prompt and generated tokens."""
    path = FOLDER / f"{name}{_PRICES}"
    if not path.exists():
        return np.nan, np.nan
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or set(found) != {"in", "out"}:
            raise InputError('it must be {"in": ..., "out": ...}')
        return checks.number(found["in"], "in") / 1e6, checks.number(found["out"], "out") / 1e6
    except (OSError, ValueError, InputError) as error:
        raise ArtifactError(f"{relative_path(path)}: no prices in $ per million tokens: {error}") from None
