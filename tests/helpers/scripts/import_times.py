"""Print how long importing disco_core takes, as a multiple of NumPy, and the packages loaded; asyncio is Python's."""

import asyncio  # noqa: F401
import sys
import time

began = time.perf_counter()
import numpy  # noqa: E402, F401

between = time.perf_counter()
import disco_core  # noqa: E402, F401

ended = time.perf_counter()
print((ended - between) / (between - began), *sorted({name.split(".")[0] for name in sys.modules}))
