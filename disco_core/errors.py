"""One small tree of exceptions; a message names the bad value and what is allowed.

DiscoError
├── InputError (also a ValueError)   a value outside what a function accepts
│   └── ConstraintError              prices that do not say which end is scarce
├── TraceError                       public data that cannot be fetched or read
└── ArtifactError                    a notebook, figure or claim that cannot be made
"""


class DiscoError(Exception):
    """Root of every error this package raises on purpose."""


class InputError(DiscoError, ValueError):
    """A value outside what a function accepts."""


class ConstraintError(InputError):
    """Prices that do not make either end the scarce one: the caller has to choose."""


class TraceError(DiscoError):
    """Public data that cannot be fetched, verified or parsed."""


class ArtifactError(DiscoError):
    """A notebook, figure or claim that cannot be made."""
