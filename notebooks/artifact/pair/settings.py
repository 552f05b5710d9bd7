"""What a pair is measured with: the names that `make pair NAME=value` takes, and their values, all checked first."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from artifact.data import model, traces
from artifact.files import ROOT
from artifact.pair.pair import Prices
from artifact.pair.readers import FEWEST
from disco_core import checks
from disco_core.cost import Constraint
from disco_core.endpoints.llama_cpp import model_file
from disco_core.endpoints.openai import OpenAIEndpoint
from disco_core.errors import EndpointError, InputError
from disco_core.latency import DeviceProfile

T = TypeVar("T")

NAMES = {
    "SERVER": "address of a server with OpenAI's API, such as http://127.0.0.1:8000/v1; its key in OPENAI_API_KEY",
    "MODEL": "name of the model on the server; may be left out where the server lists only one",
    "DEVICE": "GGUF file of the device's model (SmolLM2-135M), or its speeds in tokens per second and its startup in "
    "seconds as PREFILL,DECODE[,STARTUP], such as 79.9,21.47",
    "TRACE": "file with requests that were recorded before, which is read instead of measuring the server",
    "PART": "the run or model to read, where the file has several",
    "PRICE_IN": "$ per million prompt tokens of the server",
    "PRICE_OUT": "$ per million generated tokens of the server",
    "WATT_HOURS": "energy that the device takes for 1,000 generated tokens, in Wh",
    "PROMPTS": "csv with a column prompt, or JSON lines with prompt or messages (the project's 120 prompts)",
    "REQUESTS": "requests that measure the server (100)",
    "RATE": "requests per second, sent when they are due (without it: one after the other)",
    "ARRIVALS": "recorded arrival pattern that the requests follow at RATE (a Poisson process)",
    "MINUTES": "the longest time for measuring, of which the device takes up to a third (2)",
    "TOKENS": "longest answer in tokens (32)",
    "LIVE": "prompts that are answered under the recommended plan and under server only (0)",
    "CONSTRAINT": "device or server: the constrained endpoint, where the prices do not decide it",
    "OUT": "folder of the pair (build/pair)",
    "NAME": "keeps the record as build/services/NAME.csv as well, for the other notebooks",
    "YES": "1 allows measuring that may cost more than 1 $",
}
MAKE = ("PYTHON", "ARGS", "TRACES")  # variables of the Makefile itself, which make passes on as well
CONFIRM = 1.0  # $ that measuring may cost without YES=1
SERVICES = ROOT / "build" / "services"


@dataclass(frozen=True)
class Settings:
    """The values, as the types that they stand for; what each means is in `NAMES`.

    device   the GGUF file, or the profile that was given
    yes      whether any cost is accepted
    """

    server: str | None
    model: str | None
    device: Path | DeviceProfile
    trace: Path | None
    part: str | None
    prices: Prices | None
    prompts: Path | None
    requests: int
    rate: float | None
    arrivals: str | None
    minutes: float
    tokens: int
    live: int
    constraint: Constraint | None
    out: Path
    name: str | None
    yes: bool

    @property
    def asks_server(self) -> bool:
        """Whether requests are sent to the server."""
        return self.server is not None and (self.trace is None or self.live > 0)


def read(given: Mapping[str, Any]) -> Settings:
    """The settings in texts by name; an empty text or None counts as not given.

    InputError, one line that names the value and what is allowed, before anything is sent or measured.
    """
    texts = {name: str(value).strip() for name, value in given.items() if name not in MAKE and value is not None}
    for name in texts:
        _known(name)
    texts = {name: text for name, text in texts.items() if text}
    found = Settings(
        server=_one(texts, "SERVER", _address),
        model=texts.get("MODEL"),
        device=_device(texts.get("DEVICE")),
        trace=_one(texts, "TRACE", _path),
        part=texts.get("PART"),
        prices=_prices(texts),
        prompts=_one(texts, "PROMPTS", _path),
        requests=_one(texts, "REQUESTS", lambda text: checks.count(_number(text), "REQUESTS")) or 100,
        rate=_one(texts, "RATE", lambda text: checks.positive(_number(text), "RATE")),
        arrivals=_one(texts, "ARRIVALS", lambda text: traces.pattern(text).name),
        minutes=_one(texts, "MINUTES", lambda text: checks.positive(_number(text), "MINUTES")) or 2.0,
        tokens=_one(texts, "TOKENS", lambda text: checks.count(_number(text), "TOKENS")) or 32,
        live=_one(texts, "LIVE", _live) or 0,
        constraint=_one(texts, "CONSTRAINT", _constraint),
        out=ROOT / texts.get("OUT", "build/pair"),
        name=_one(texts, "NAME", _name),
        yes=_one(texts, "YES", _yes) or False,
    )
    _consistent(found)
    return found


def described() -> str:
    """The names with what they mean, one line each."""
    return "\n".join(f"  {name:<11}{meaning}" for name, meaning in NAMES.items())


def _known(name: str) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name.upper(), NAMES, n=3, cutoff=0.5)
        raise InputError(f"no setting {name!r}; {'near it' if near else 'there'} are: {', '.join(near or NAMES)}")


def _one(texts: Mapping[str, str], name: str, reader: Callable[[str], T]) -> T | None:
    return reader(texts[name]) if name in texts else None


def _number(text: str) -> float | str:
    """The number that a text is; another text as it is, for the check that names it."""
    with suppress(ValueError):
        return float(text)
    return text


def _address(text: str) -> str:
    try:
        return OpenAIEndpoint("model", base_url=text, api_key="unused", name="SERVER").base_url
    except EndpointError as error:
        raise InputError(str(error)) from None


def _path(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise InputError(f"{text}: there is no such file")
    return path


def _device(text: str | None) -> Path | DeviceProfile:
    if text is None:
        return model.smollm2_path()
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[-+]?[\d.][\d.eE+-]*\s*", part) for part in parts):
        return model_file("DEVICE", Path(text).expanduser())
    if len(parts) not in (2, 3):
        raise InputError(f"DEVICE must be a GGUF file or PREFILL,DECODE[,STARTUP], got {text!r:.80}")
    try:
        return DeviceProfile(*(checks.number(_number(part), "its numbers") for part in parts))
    except InputError as error:
        raise InputError(f"DEVICE: {error}") from None


def _prices(texts: Mapping[str, str]) -> Prices | None:
    given = {name: checks.number(_number(texts[name]), name) for name in _PRICED if name in texts}
    missing = [name for name in _PRICED[:2] if name not in given]
    if given and missing:
        raise InputError(f"{', '.join(given)} needs {' and '.join(missing)} as well; 0 is allowed")
    return Prices(*(given.get(name, math.nan) for name in _PRICED)) if given else None


_PRICED = ("PRICE_IN", "PRICE_OUT", "WATT_HOURS")


def _live(text: str) -> int:
    return 0 if text == "0" else checks.count(_number(text), "LIVE, if it is not 0,")


def _constraint(text: str) -> Constraint:
    for one in Constraint:
        if text.lower() == one.value:
            return one
    raise InputError(f"CONSTRAINT must be device or server, got {text!r:.80}")


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise InputError(f"NAME must have letters, digits and . _ - alone, got {text!r:.80}")
    return text


def _yes(text: str) -> bool:
    if text.lower() not in ("0", "1", "no", "yes", "true", "false"):
        raise InputError(f"YES must be 1 or 0, got {text!r:.80}")
    return text.lower() in ("1", "yes", "true")


def _consistent(s: Settings) -> None:
    """InputError where values do not go together."""
    if s.server is None and s.trace is None:
        raise InputError("nothing to study: give SERVER=http://host/v1, or TRACE=file with recorded requests")
    if s.part is not None and s.trace is None:
        raise InputError("PART says what to read of TRACE, which is missing")
    if s.arrivals is not None and s.rate is None:
        raise InputError("ARRIVALS needs RATE, the requests per second at which the pattern is replayed")
    if s.requests < FEWEST and s.trace is None:
        raise InputError(f"REQUESTS must be at least {FEWEST}, got {s.requests}; no plan is made from fewer")
    if s.tokens < 2:
        raise InputError("TOKENS must be at least 2, got 1; the decode rate is measured between tokens")
    if s.live and s.server is None:
        raise InputError("LIVE needs SERVER, whose answers it compares")
    if s.live and isinstance(s.device, DeviceProfile):
        raise InputError("LIVE needs a DEVICE that can answer, a GGUF file; given speeds cannot")
    if s.out.resolve() == ROOT or (s.out.exists() and not s.out.is_dir()):
        raise InputError(f"OUT must be a folder of its own, got {str(s.out)!r}")
