"""A pair comes back from its folder as it was stored."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from artifact.errors import ArtifactError
from artifact.pair.pair import LIVE, Pair, Prices, load
from artifact.pair.readers import Requests
from disco_core.cost import Constraint
from disco_core.latency import DeviceProfile


def a_pair(n=20, **other):
    rng = np.random.default_rng(n)
    requests = Requests(
        np.arange(float(n)),
        rng.integers(5, 90, n),
        np.full(n, np.nan),
        rng.random(n) + 0.1,
        2,
        "csv",
        1e9,
        ("a note",),
    )
    return Pair(
        requests, 40.0, DeviceProfile(60.0, 20.0, 0.1), about={"server": "a server"}, notes=("short",), **other
    )


def test_a_pair_comes_back_as_it_was_stored(tmp_path):
    trials = pd.DataFrame({"prompt_tokens": [10, 20], "ttft_s": [0.3, 0.5]})
    live = pd.DataFrame([[0, "DiSCo-D", 12, 0.25, 40, "device", 0, np.nan, ""]], columns=LIVE)
    one = a_pair(trials=trials, prices=Prices(0.15, 0.6, 2.0)).with_live(live)
    back = load(one.store(tmp_path))
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "ttft_s"):
        np.testing.assert_array_equal(getattr(back.requests, name), getattr(one.requests, name))
    assert (back.requests.failed, back.requests.notes, back.requests.began_s) == (2, ("a note",), 1e9)
    assert (back.device, back.server_rate, back.prices, back.notes) == (one.device, 40.0, one.prices, ("short",))
    pd.testing.assert_frame_equal(back.trials, trials)
    pd.testing.assert_frame_equal(back.live, live, check_dtype=False)


def test_energy_is_priced_by_time():
    device = DeviceProfile(prefill_rate=100.0, decode_rate=20.0)
    cost = Prices(0.0, 0.0, watt_hours=10.0, kwh=0.3).model(device)
    assert cost.device_decode == pytest.approx(10.0 / 1000 / 1000 * 0.3)  # Wh per token, kWh, $
    assert cost.device_prefill == pytest.approx(cost.device_decode / 5)  # a fifth of the time
    assert Prices(0.15, 0.6).model(device).constraint is Constraint.SERVER


@pytest.mark.parametrize("broken", ["absent", "format", "cut"])
def test_a_folder_that_holds_none_is_one_line(tmp_path, broken):
    if broken != "absent":
        replace(a_pair()).store(tmp_path)
        path = tmp_path / "pair.json"
        text = path.read_text()
        path.write_text(text.replace('"format": 1', '"format": 9') if broken == "format" else text[:40])
    with pytest.raises(ArtifactError, match="holds no pair") as told:
        load(tmp_path)
    assert "\n" not in str(told.value)
