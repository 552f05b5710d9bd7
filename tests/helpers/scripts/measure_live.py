"""Measure live streams in small into the folder that is given."""

import sys

from artifact.measure import live, store
from tests.helpers.measuring import defaults

small = {"calibration": 12, "pairs": 12, "prompts": 3, "raw_prompts": 2, "max_tokens": 12, "seams": 3}
store.STORED = store.Path(sys.argv[1]) / "stored"
store.measured("live", defaults("measure_live") | small, live.measure, out=sys.argv[1] + "/live")
