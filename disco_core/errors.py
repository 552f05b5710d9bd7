"""One small tree of exceptions; a message names the bad value and what is allowed.

DiscoError
├── InputError (also a ValueError)   a value outside what a function accepts
│   └── ConstraintError              prices that do not determine the constrained endpoint
├── EndpointError                    an endpoint that could not answer, or stopped in the middle
│   ├── RefusedError                 it did not accept the request
│   ├── StalledError                 it sent no token within its deadline
│   ├── CutError                     it stopped before the answer was complete
│   │   └── FilteredError            its content filter stopped the answer
│   └── ProtocolError                it sent something that is not the next token
└── StreamError                      neither endpoint could continue
"""


class DiscoError(Exception):
    """Root of every error this package raises on purpose."""


class InputError(DiscoError, ValueError):
    """A value outside what a function accepts."""


class ConstraintError(InputError):
    """Prices that do not determine the constrained endpoint: the caller has to choose."""


class EndpointError(DiscoError):
    """An endpoint that could not answer, or stopped in the middle; the message begins with its name."""

    def __init__(self, endpoint: str, what: str) -> None:
        super().__init__(f"{endpoint}: {what}")
        self.endpoint = endpoint


class RefusedError(EndpointError):
    """It did not accept the request: unreachable, not allowed, too many requests, or the prompt does not fit."""


class StalledError(EndpointError):
    """It sent no token within its deadline."""


class CutError(EndpointError):
    """It stopped before the answer was complete, for instance without a finish reason."""


class FilteredError(CutError):
    """Its content filter stopped the answer: no other endpoint continues past that, unless the caller says so."""


class ProtocolError(EndpointError):
    """It sent something that is not the next token."""


class StreamError(DiscoError):
    """Neither endpoint could continue; the reader has the tokens generated until then."""
