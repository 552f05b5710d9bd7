"""What can go wrong in the artifact, beside the errors of `disco_core.errors`.

disco_core.DiscoError
├── TraceError          public data that cannot be fetched or read
└── ArtifactError       a notebook, measurement, figure or claim that cannot be made
    └── SweepError      a sweep that stopped; what it had finished is kept
"""

from disco_core.errors import DiscoError


class TraceError(DiscoError):
    """Public data that cannot be fetched, verified or parsed."""


class ArtifactError(DiscoError):
    """A notebook, figure or claim that cannot be made."""


class SweepError(ArtifactError):
    """A sweep that stopped: `kept` of its `cells` are kept; `address` is the scheduler's, None on this machine."""

    def __init__(self, what: str, kept: int, cells: int, address: str | None = None) -> None:
        where = f" (scheduler {address})" if address else ""
        super().__init__(f"{what}{where}; {kept} of {cells} cells are kept, and the same sweep goes on from there")
        self.kept, self.cells, self.address = kept, cells, address
