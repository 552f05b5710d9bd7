"""One hypothesis profile: no deadline, since the machine also runs models; failures reproduce."""

import os
from pathlib import Path

from hypothesis import settings

settings.register_profile("disco", deadline=None, print_blob=True)
settings.load_profile("disco")

# Python processes that tests start find what the notebooks find
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1] / "notebooks")
