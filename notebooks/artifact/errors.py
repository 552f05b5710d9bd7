"""The artifact's errors, beside those of `disco_core.errors`.

disco_core.DiscoError
├── TraceError          public data that cannot be fetched or read
└── ArtifactError       a notebook, measurement, sweep, figure or claim that fails
"""

from disco_core.errors import DiscoError


class TraceError(DiscoError):
    """Public data that cannot be fetched, verified or parsed."""


class ArtifactError(DiscoError):
    """A notebook, measurement, sweep, figure or claim that fails."""
