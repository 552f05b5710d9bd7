"""A pair: one server and one device as they were measured or read, in a folder that the notebook `your_pair` reads.

requests.csv   the server: arrival_s, prompt_tokens, output_tokens (empty where unknown), ttft_s
device.csv     the device's trials: prompt_tokens, ttft_s; without rows where its speeds were given
live.csv       answers under the recommended plan and under server only, if any were asked for
pair.json      all else; it holds no key
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from artifact.errors import ArtifactError
from artifact.files import relative_path, write_together
from artifact.pair.readers import Requests
from disco_core import checks
from disco_core.cost import CostModel
from disco_core.errors import DiscoError, InputError
from disco_core.latency import DeviceProfile

FORMAT = 1
KWH = 0.15  # $ per kWh
TRIALS = ["prompt_tokens", "ttft_s"]
LIVE = ["request", "policy", "prompt_tokens", "ttft_s", "tokens", "winner", "migrated_at", "cost", "failure"]


@dataclass(frozen=True)
class Prices:
    """What answers cost.

    server_in, server_out   $ per million prompt and generated tokens
    watt_hours              energy that the device takes for 1,000 generated tokens, in Wh; NaN where unknown
    kwh                     $ per kWh
    """

    server_in: float
    server_out: float
    watt_hours: float = float("nan")
    kwh: float = KWH

    def __post_init__(self) -> None:
        for name in ("server_in", "server_out", "kwh"):
            object.__setattr__(self, name, checks.number(getattr(self, name), name))
        if not np.isnan(self.watt_hours):
            checks.number(self.watt_hours, "watt_hours")

    def model(self, device: DeviceProfile) -> CostModel:
        """Prices per token: the device takes the same power in prefill and in decode; unknown energy is free."""
        decode = np.nan_to_num(self.watt_hours) / 1e6 * self.kwh
        prefill = decode * device.decode_rate / device.prefill_rate
        return CostModel(self.server_in / 1e6, self.server_out / 1e6, float(prefill), float(decode))


@dataclass(frozen=True, eq=False)
class Pair:
    """One server and one device.

    requests      the server's, as `readers.read` returns them
    server_rate   the server's decode rate in tokens per second, NaN where unknown
    device        fitted to `trials`, or as it was given
    trials        the device's trials, columns `TRIALS`
    prices        None where none were given
    about         what the page says of it, by name, such as server, model, device, measured (how), date, machine
    notes         one sentence for each thing that limits what follows from it
    live          answers under two policies, columns `LIVE`; without rows unless asked for
    """

    requests: Requests
    server_rate: float
    device: DeviceProfile
    trials: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=TRIALS, dtype=float))
    prices: Prices | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    live: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=LIVE))

    def store(self, folder: Path) -> Path:
        """Write the pair to a folder, which is returned; ArtifactError if that is not possible."""
        found = self.requests
        columns = {name: getattr(found, name) for name in ("arrival_s", "prompt_tokens", "output_tokens", "ttft_s")}
        about = {
            "format": FORMAT,
            "requests": {name: getattr(found, name) for name in ("failed", "form", "began_s", "notes")},
            "server_rate": self.server_rate,
            "device": asdict(self.device),
            "prices": None if self.prices is None else asdict(self.prices),
            "about": dict(self.about),
            "notes": self.notes,
        }
        tables = {"requests": pd.DataFrame(columns), "device": self.trials, "live": self.live}
        files = {
            f"{name}.csv": table.to_csv(index=False, lineterminator="\n").encode() for name, table in tables.items()
        }
        write_together(folder, files | {"pair.json": (json.dumps(about, indent=1) + "\n").encode()})
        return folder

    def with_live(self, live: pd.DataFrame) -> "Pair":
        """The same pair with these answers."""
        return replace(self, live=live[LIVE])


def load(folder: Path) -> Pair:
    """The pair in a folder; ArtifactError, in one line, if there is none."""
    try:
        about: dict[str, Any] = json.loads((folder / "pair.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise InputError(f"format {about['format']}, not {FORMAT}")
        rows = pd.read_csv(folder / "requests.csv")
        requests = Requests(
            arrival_s=rows["arrival_s"].to_numpy(np.float64),
            prompt_tokens=rows["prompt_tokens"].to_numpy(np.int64),
            output_tokens=rows["output_tokens"].to_numpy(np.float64),
            ttft_s=rows["ttft_s"].to_numpy(np.float64),
            **about["requests"] | {"notes": tuple(about["requests"]["notes"])},
        )
        return Pair(
            requests,
            float(about["server_rate"]),
            DeviceProfile(**about["device"]),
            pd.read_csv(folder / "device.csv"),
            None if about["prices"] is None else Prices(**about["prices"]),
            about["about"],
            tuple(about["notes"]),
            pd.read_csv(folder / "live.csv", keep_default_na=False, na_values={"ttft_s": [""], "cost": [""]}),
        )
    except (OSError, ValueError, KeyError, TypeError, DiscoError) as error:
        detail = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{relative_path(folder)} holds no pair: {detail}; `make pair` makes one") from None
