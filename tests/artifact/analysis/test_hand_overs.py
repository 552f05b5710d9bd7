"""Hand-overs of live answers: every setting that is measured has a name."""

import pandas as pd

from artifact.analysis import hand_overs
from artifact.files import DATA


def test_every_setting_of_the_reference_has_a_name():
    settings = pd.read_csv(DATA / "measured" / "live" / "tokens.csv").setting.unique()
    assert "quiet" in settings
    names = [hand_overs.setting_name(one) for one in settings]
    assert len(set(names)) == len(settings)
