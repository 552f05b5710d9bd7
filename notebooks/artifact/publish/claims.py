"""Claims and their verdicts: the rule is committed before the number, and decides without a human.

`data/claims.csv` lists every claim; a notebook calls `check` or `not_tested` once per claim; its verdicts
stand in `figures/<stem>.claims.json`. `claims_table` shows them all.

    band      the median of our values lies in [low - tolerance, high + tolerance]
    at least  it is at least paper - tolerance
    at most   it is at most paper + tolerance
    trend     our values are differences, positive where they go as the paper says; one-sided sign test

Verdicts: PASS; DIFFERS, tested and came out otherwise, also where it came out better; NOT TESTED.
"""

import ast
import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from artifact.errors import ArtifactError
from artifact.files import DATA, FIGURES, ROOT, folder
from artifact.measure.store import Measured
from artifact.publish import verdict_files
from artifact.publish.parameters import parameters
from artifact.publish.verdict_files import DIFFERS, NOT_TESTED, PASS, Verdict
from disco_core.errors import InputError

MISSING = "MISSING"
TABLE = DATA / "claims.csv"
_COLUMNS = (
    "id",
    "source",
    "mark",
    "statement",
    "kind",
    "paper",
    "tolerance",
    "better",
    "rule",
    "expected",
    "exhibit",
)
# settings that no rule fixes: who is asked, and what is evaluated, is what the claim says, and the quick size is said
# by the measurement
_ANY = {"quick", "server", "judges", "judge_url", "second", "evaluate"}
_BETTER = ("higher", "lower", "")
_KINDS = ("band", "at least", "at most", "trend")


@dataclass(frozen=True)
class Claim:
    """One row of the table. `low`, `high` are the paper's values, nan where a trend states none.

    better    which values would be better than the paper's, "higher" or "lower"; "" where the paper states no number
    """

    id: str
    source: str
    mark: str
    statement: str
    kind: str
    paper: str
    tolerance: float
    better: str
    rule: str
    expected: str
    exhibit: str
    low: float
    high: float

    @property
    def alpha(self) -> float:
        """The level of the sign test that a trend's rule names, as in `sign test p < 0.05`."""
        found = re.search(r"p\s*<\s*(0?\.\d+)", self.rule)
        return float(found[1]) if found else math.nan

    def place(self, value: float) -> str:
        """Where a value lies against the paper's own, in words; nothing where the paper states no number."""
        if not self.better or math.isnan(self.low):
            return ""
        if self.low <= value <= self.high:
            return "inside the range" if self.low < self.high else "the same value"
        if self.low - self.tolerance <= value <= self.high + self.tolerance:
            return "within the tolerance"
        return "beyond, better" if (value > self.high) == (self.better == "higher") else "beyond, worse"


def load(table: Path | None = None) -> dict[str, Claim]:
    """Every claim by id, in the table's order. Raises ArtifactError naming the row and what is allowed."""
    table = table or TABLE
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet may have put a mark before it
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read the claims table {table}: {error}") from None
    claims: dict[str, Claim] = {}
    for number, row in enumerate(rows, start=2):
        if wrong := _fields(row):
            raise ArtifactError(f"{table.name} line {number}: {wrong}; the columns are {', '.join(_COLUMNS)}")
        try:
            claim = _claim(row)
        except ValueError as error:
            raise ArtifactError(f"{table.name} line {number}, claim {row['id']!r}: {error}") from None
        if claim.id in claims:
            raise ArtifactError(f"{table.name} line {number}: claim {claim.id!r} is listed twice")
        claims[claim.id] = claim
    if not claims:
        raise ArtifactError(f"{table} lists no claim; restore it with `git checkout data`")
    return claims


def _fields(row: dict[str, str]) -> str:
    """What is wrong with a row's fields as such."""
    missing = [name for name in _COLUMNS if row.get(name) is None]
    if missing:
        return f"it has no {', '.join(missing)}"
    if set(row) != set(_COLUMNS):  # DictReader puts fields without a column under None
        return "it has a field, or the table a column, too many"
    return ", ".join(f"{name} is empty" for name in ("id", "source", "statement", "rule") if not row[name].strip())


def _claim(row: dict[str, str]) -> Claim:
    for column, allowed in (
        ("kind", _KINDS),
        ("mark", ("P", "N", "R")),
        ("better", _BETTER),
        ("expected", (PASS, DIFFERS, NOT_TESTED)),
    ):
        if row[column] not in allowed:
            raise ValueError(f"{column} is {row[column]!r}, allowed are {', '.join(allowed)}")
    low, high = _interval(row["paper"])
    try:
        tolerance = float(row["tolerance"] or 0)
    except ValueError:
        tolerance = math.nan
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance is {row['tolerance']!r}, it must be a finite number of at least 0")
    claim = Claim(**(row | {"tolerance": tolerance, "low": low, "high": high}))  # type: ignore[arg-type]
    if claim.expected != NOT_TESTED:
        _require_testable(claim)
    return claim


def _interval(paper: str) -> tuple[float, float]:
    first, dots, last = paper.partition("..")
    try:
        return float(first), float(last if dots else first)
    except ValueError:  # a trend, told in words
        return math.nan, math.nan


def _require_testable(claim: Claim) -> None:
    if claim.kind == "trend" and not 0 < claim.alpha < 1:
        raise ValueError(f"the rule of a trend names its test as `sign test p < 0.05`, not {claim.rule!r}")
    if claim.kind != "trend" and not -math.inf < claim.low <= claim.high < math.inf:
        raise ValueError(f"paper is {claim.paper!r}, it must be a number or low..high")


def check(
    id: str,
    ours: ArrayLike,
    *,
    stem: str,
    out: str | Path = FIGURES,
    reason: str = "",
    favourable: ArrayLike | None = None,
    measured: Measured | Sequence[Measured] | None = None,
    table: Path | None = None,
) -> Verdict:
    """Decide one claim from our value, or values over the pairs, and write it to `out/<stem>.claims.json`.

    `ours` is in the unit of the claim; for a trend it holds signed differences, positive as the paper says.
    Where the claim comes out otherwise the numbers say why; `reason` adds what they cannot.
    `favourable` is the same against the reading of the baseline that favours it (Stoch+): shown, never judged.
    `measured` is the measurement the value rests on, or several: on one that was disturbed, or taken with other
    settings than its notebook's defaults, the claim is NOT TESTED.
    Raises InputError for an unknown id and for empty, NaN or infinite values: those never pass. A measurement that
    holds none, such as of answers of which none moved, leaves the claim NOT TESTED.
    """
    claim, values = _get(id, table), np.asarray(ours, dtype=float).ravel()
    rests_on = [measured] if isinstance(measured, Measured) else measured or []
    if unfit := "; ".join(filter(None, map(_unfit, rests_on))):
        return _record(claim, NOT_TESTED, None, unfit, stem, out)
    if rests_on and (values.size == 0 or np.isnan(values).any()):
        return _record(claim, NOT_TESTED, None, "what was measured holds no value for it", stem, out)
    if values.size == 0:
        raise InputError(f"claim {id}: no value given; one finite number or more is needed")
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise InputError(f"claim {id}: got the value {bad}; every value must be a finite number")
    try:
        _require_testable(claim)
    except ValueError as error:
        raise InputError(f"claim {id}: {error}") from None
    passed, text, why = _test_trend(claim, values) if claim.kind == "trend" else _test_median(claim, values)
    if passed and claim.kind != "trend" and not claim.low <= float(np.median(values)) <= claim.high:
        why = f"within the tolerance of {claim.tolerance:g}, outside the paper's own values"
        passed_by = why if claim.kind == "band" else ""
    else:
        passed_by = "" if passed else why
    reason = "; ".join(part for part in (passed_by, reason) if part)
    ours_shown = {"median": _rounded(float(np.median(values))), "text": text}
    if favourable is not None:
        other = np.asarray(favourable, dtype=float).ravel()
        test = _test_trend if claim.kind == "trend" else _test_median
        ours_shown["favourable"] = test(claim, other)[1]
    return _record(claim, PASS if passed else DIFFERS, ours_shown, reason, stem, out)


def _unfit(measured: Measured) -> str:
    """Why a claim cannot rest on a measurement; nothing if it can."""
    if measured.disturbed:
        return measured.disturbed
    name = f"measure_{measured.manifest['name']}"
    usual = {one.name: one.value(ast.literal_eval(one.default)) for one in parameters(name).values()}
    other = [f"{k}={v!r}" for k, v in measured.settings.items() if k not in _ANY and v != usual.get(k)]
    return f"measured with {', '.join(other)}, not with the defaults of {name}" if other else ""


def not_tested(id: str, missing: str, *, stem: str, out: str | Path = FIGURES, table: Path | None = None) -> Verdict:
    """Record that a claim was not tested, and what is `missing` for it, such as a key."""
    if not missing.strip():
        raise InputError(f"claim {id}: say what is missing")
    return _record(_get(id, table), NOT_TESTED, None, missing, stem, out)


def _get(id: str, table: Path | None) -> Claim:
    claims = load(table)
    if id not in claims:
        raise InputError(f"no claim {id!r}; the table has {', '.join(claims) or 'none'}")
    return claims[id]


def _test_median(claim: Claim, values: NDArray[np.float64]) -> tuple[bool, str, str]:
    median = float(np.median(values))
    low, high = _bounds(claim)
    # a bound that is met exactly is met, whatever the rounding of low - tolerance
    slack = 1e-9 * max(1.0, abs(median))
    text = f"{median:.4g}"
    if values.size > 1:
        text = f"{median:.4g} (median of {values.size}; {values.min():.4g} to {values.max():.4g})"
    bound, side = (low, "below") if median < low else (high, "above")
    return low - slack <= median <= high + slack, text, f"{median:.4g} is {side} {bound:.4g}"


def _bounds(claim: Claim) -> tuple[float, float]:
    """The interval in which a median passes."""
    low = -math.inf if claim.kind == "at most" else claim.low - claim.tolerance
    return low, math.inf if claim.kind == "at least" else claim.high + claim.tolerance


def _test_trend(claim: Claim, values: NDArray[np.float64]) -> tuple[bool, str, str]:
    from scipy.stats import binomtest

    positive, moved = int((values > 0).sum()), int((values != 0).sum())
    p = float(binomtest(positive, moved, 0.5, alternative="greater").pvalue) if moved else 1.0
    text = f"{positive} of {values.size} as the paper says, p = {p:.2g}"
    return p < claim.alpha, text, f"sign test p = {p:.2g}, not below {claim.alpha:g}"


def _record(claim: Claim, verdict: str, ours: object, reason: str, stem: str, out: str | Path) -> Verdict:
    entry: Verdict = {
        "id": claim.id,
        "verdict": verdict,
        "paper": claim.paper,
        "ours": ours,
        "rule": claim.rule,
        "exhibit": claim.exhibit,
        "reason": reason,
    }
    verdict_files.add(folder(out) / f"{stem}.claims.json", entry)
    return entry


def _judged_otherwise(claim: Claim, entry: Verdict) -> str:
    """What of the table's row an entry was not judged by, as far as it tells; nothing if it was."""
    other = [name for name in ("paper", "rule", "exhibit") if entry.get(name) != getattr(claim, name)]
    if other or entry["verdict"] == NOT_TESTED or claim.kind == "trend":
        return ", ".join(other)
    median = entry["ours"]["median"]
    low, high = _bounds(claim)
    rounding = 1e-5 * max(1.0, abs(median))  # in the file it has six digits
    near = min(abs(median - low), abs(median - high)) <= rounding
    return "" if near or (low <= median <= high) == (entry["verdict"] == PASS) else "kind or tolerance"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def verdicts(
    directory: str | Path = FIGURES, table: Path | None = None, rest: str | Path | None = None
) -> dict[str, Verdict]:
    """The verdict of every claim of the table, from the claims files of a directory, or else of the directory `rest`.

    A claim without a file entry is NOT TESTED where that is expected, else MISSING; MISSING is also one that was
    judged by another rule than the table's.
    Raises ArtifactError where an id stands in two files or is not in the table, or the directory is not there.
    """
    claims = load(table)
    if not (ROOT / directory).is_dir():
        raise ArtifactError(f"no folder {directory}; run `make figures` first")
    found: dict[str, Verdict] = {}
    where: dict[str, str] = {}
    for path in sorted((ROOT / directory).glob("*.claims.json")):
        for entry in verdict_files.read(path):
            id = entry["id"]
            if id in where:
                both = (
                    f"two verdicts in {path.name}"
                    if where[id] == path.name
                    else f"a verdict in {where[id]} and in {path.name}"
                )
                raise ArtifactError(f"claim {id} has {both}; one must go")
            if id not in claims:
                raise ArtifactError(f"{path.name} judges {id!r}, which the claims table does not list")
            if other := _judged_otherwise(claims[id], entry):
                told = f"judged by another {other} than data/claims.csv has; run `make figures`"
                entry = {"verdict": MISSING, "ours": None, "reason": told}
            found[id], where[id] = entry, path.name
    others = verdicts(rest, table) if rest is not None else {}
    for id, claim in claims.items():
        if id not in found and id in others:
            found[id] = others[id]
        elif id not in found:
            expected_so = claim.expected == NOT_TESTED
            found[id] = {
                "verdict": NOT_TESTED if expected_so else MISSING,
                "ours": None,
                "reason": claim.rule if expected_so else f"no verdict in {directory}",
            }
    return {id: found[id] for id in claims}
