"""Measuring the device model: sizes that cannot be measured are refused before the model is loaded."""

import pytest

from artifact.measure import device as measure
from disco_core.errors import InputError


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"decode_tokens": -1}, {"lengths": [0]}, {"lengths": []}])
def test_bad_sizes_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        measure.measure_device(**bad)


def test_a_prompt_beyond_the_context_is_refused():
    with pytest.raises(InputError, match="context"):
        measure.measure_device([10**6])
