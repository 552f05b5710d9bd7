# A cell behind a parameters cell, which gives `out`.
# ruff: noqa: F821
from pathlib import Path

for name in ("try_a.csv", "try_a.json", "try.claims.json"):
    Path(out).mkdir(exist_ok=True)
    (Path(out) / name).write_text(name)
