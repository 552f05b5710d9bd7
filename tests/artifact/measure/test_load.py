"""Settings of the measurement of a server under load."""

import pytest

from artifact.measure import load
from disco_core.errors import InputError
from tests.helpers.measuring import a_run


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"loads": []}, "loads must be"),
        ({"loads": [0.5, 0.0]}, "loads must be shares of the saturation rate above 0"),
        ({"loads": [1.5]}, "load must be"),
        ({"requests": 0}, "requests must be"),
        ({"stretches": 1.5}, "stretches must be"),
        ({"seconds": 0.0}, "seconds must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"fewest": -1}, "fewest must be"),
        ({"seed": -1}, "seed must be"),
        ({"arrivals": "friday"}, "no arrival pattern 'friday'"),
    ],
)
def test_a_setting_that_cannot_be_measured_is_refused_before_a_server_starts(tmp_path, changed, told):
    with pytest.raises(InputError, match=told):
        load.measure(a_run(tmp_path, "load", **changed))
    assert not (tmp_path / "pieces.jsonl").exists()


@pytest.mark.parametrize(
    ("share", "n"), [(0.1, 100), (0.3, 117), (0.9, 351)]
)  # 65 seconds at 0.3 and 0.9 of 6 requests per second
def test_a_load_has_enough_requests_and_lasts_long_enough(share, n):
    assert load.counts(share, 6.0, 100, 65.0) == n
