"""Services of one's own: recorded requests in `build/services/`, shown by a notebook that is asked for them by name.

NAME.csv, .json or .jsonl   requests in any form that `artifact.pair.readers` reads
NAME.prices.json            {"in": 0.15, "out": 0.6}, dollars per million tokens; without it the prices are unknown

What is not asked for by name is never read, so a file in that folder changes no committed exhibit and no verdict.
`NAME:PART` is one run or model of a file that has several.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from artifact.data import traces
from artifact.data.traces import Service
from artifact.errors import ArtifactError
from artifact.files import BUILD, FIGURES, folder, relative_path
from artifact.pair import readers
from disco_core import checks
from disco_core.errors import DiscoError, InputError
from disco_core.latency import TTFTDistribution

FOLDER = BUILD / "services"
_SUFFIXES = (".csv", ".json", ".jsonl")
_PRICES = ".prices.json"
_NAME = re.compile(r"[^\W_][\w .+-]*")  # no comma and no colon, which separate names and parts
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def chosen(asked: str, source: str = "tables", *, out: Path | str, every: bool = False) -> dict[str, Service]:
    """The services that a notebook shows, by name.

    asked    names separated by commas, of committed services and of one's own; "" for the committed default
    source   of committed services, as in `traces.service`
    out      the folder of the exhibits: with services asked for by name, it must not be the committed one
    every    whether the default is all of `data/services.csv` instead of those that represent one of the paper's
    InputError for a name that is neither, and for `out`; ArtifactError as `service`.
    """
    names = dict.fromkeys(name.strip() for name in asked.split(",") if name.strip())
    if not names:
        return {name: traces.service(name, source) for name in (traces.services() if every else of_paper())}
    if folder(out).resolve() == FIGURES.resolve():
        raise InputError(f"out is {str(out)!r}, the committed exhibits; those of {asked} need another folder")
    return {name: service(name) if _is_own(name) else traces.service(name, source) for name in names}


def of_paper() -> list[str]:
    """Names of the services that represent one of the paper's."""
    return [str(name) for name in traces.table("services").dropna(subset="paper_service")["service"]]


def names() -> list[str]:
    """Names of one's own services, sorted; those of files whose name has other characters are left out."""
    return sorted(_files())


def service(name: str) -> Service:
    """One of one's own services, NAME or NAME:PART; prices are NaN where there are none.

    It has one host, so `resample` draws requests only. InputError for an unknown name. ArtifactError, in one line,
    for two files of one name, a name that a committed service has, prices that are none, and what the reader refuses.
    """
    stem, _, part = name.partition(":")
    files = _files()
    if stem not in files:
        raise _unknown(name)
    if stem in traces.services():
        path = relative_path(files[stem][0])
        raise ArtifactError(f"{path} has the name of a committed service; give the file another name")
    if len(files[stem]) > 1:
        listed = ", ".join(str(relative_path(path)) for path in files[stem])
        raise ArtifactError(f"service {stem!r} has {len(files[stem])} files, one is allowed: {listed}")
    (path,) = files[stem]
    requests = _read(path, part or None)
    price_in, price_out = _prices(path.with_name(stem + _PRICES))
    ttft, shown = TTFTDistribution(requests.ttft_s), relative_path(path).as_posix()
    return Service(
        name=name,
        paper_service=None,
        stand_in="; ".join([f"not in the paper: requests of {shown}", *requests.notes]),
        n=len(requests),
        ttft=ttft,
        hosts={name: (len(requests), ttft)},
        price_in=price_in,
        price_out=price_out,
        source=f"{shown}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}",
    )


def own(services: Mapping[str, Service]) -> list[str]:
    """Names of those that are one's own."""
    return [name for name in services if name not in traces.services()]


def without_prices(services: Mapping[str, Service]) -> list[str]:
    """Names of those whose prices are unknown."""
    return [name for name, one in services.items() if one.price_in != one.price_in]  # NaN


def note(services: Mapping[str, Service]) -> str:
    """A sentence for captions that names one's own services; "" where there are none."""
    listed = ", ".join(f"{name} ({services[name].n:,} requests)" for name in own(services))
    return f" From build/services: {listed}." if listed else ""


def absent(services: Mapping[str, Service]) -> str:
    """A sentence for captions of a committed measurement, which has none of one's own services."""
    listed = ", ".join(own(services))
    return f" Not measured, so not among them: {listed}." if listed else ""


def number(services: Mapping[str, Service]) -> str:
    """How many there are, as in "six services"."""
    count = len(services)
    return f"{_NUMBERS[count - 1] if count <= len(_NUMBERS) else count} service{'s' if count > 1 else ''}"


def origin(services: Mapping[str, Service]) -> str:
    """Where their requests are from, as in "public traces"."""
    count = len(own(services))
    parts = ["public traces"] * (count < len(services)) + ["build/services"] * (count > 0)
    return " and ".join(parts)


def unjudged(services: Mapping[str, Service]) -> str:
    """Why no claim is judged with these services; "" with exactly those that represent the paper's."""
    if list(services) == (expected := of_paper()):
        return ""
    return f"No claim is judged: claims are about {', '.join(expected)}, and shown are {', '.join(services)}."


def _is_own(name: str) -> bool:
    stem = name.partition(":")[0]
    if stem in _files():
        return True  # with a committed name too, which `service` then refuses
    if name in traces.services():
        return False
    raise _unknown(name)


def _unknown(name: str) -> InputError:
    listed = f"committed: {', '.join(traces.services())}; in build/services: {', '.join(names()) or 'none'}"
    return InputError(f"no service {name!r}; {listed}")


def _files() -> dict[str, list[Path]]:
    """The files of one's own services by name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(FOLDER.glob("*")):
        if path.suffix in _SUFFIXES and not path.name.endswith(_PRICES) and _NAME.fullmatch(path.stem):
            found.setdefault(path.stem, []).append(path)
    return found


def _read(path: Path, part: str | None) -> readers.Requests:
    try:
        return readers.read(path, part)
    except ArtifactError as error:
        line = str(error).replace(str(path), str(relative_path(path)), 1)
        hint = f"; ask for it as {path.stem}:PART" if "name the part to read" in line else ""
        raise ArtifactError(f"{line}{hint}") from None


def _prices(path: Path) -> tuple[float, float]:
    """Dollars per prompt and per generated token; NaN without the file."""
    if not path.exists():
        return float("nan"), float("nan")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or set(found) != {"in", "out"}:
            raise InputError(f"not of the form {{'in': 0.15, 'out': 0.6}}, got {found!r:.60}")
        return checks.number(found["in"], "in") / 1e6, checks.number(found["out"], "out") / 1e6
    except (OSError, ValueError, DiscoError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{relative_path(path)} has no prices in dollars per million tokens: {what}") from None
