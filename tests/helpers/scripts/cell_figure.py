# A cell behind a parameters cell, which gives `out`.
# ruff: noqa: F821
import matplotlib.pyplot as plt
import pandas as pd

from artifact.publish import figures

figures.use_style()
about = {"title": "t", "caption": "c", "interpretation": "i", "kind": "simulated", "source": "s", "parameters": {}}
_ = figures.save(plt.subplots()[0], "try_one", pd.DataFrame({"x": [1]}), out=out, **about)
