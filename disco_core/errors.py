"""One small tree of exceptions; a message names the bad value and what is allowed.

DiscoError
├── InputError (also a ValueError)   a value outside what a function accepts
│   └── ConstraintError              prices that do not say which end is scarce
├── EndpointError                    an end that could not answer, or stopped in the middle
│   ├── RefusedError                 it took no work
│   ├── StalledError                 it sent nothing within its deadline
│   ├── CutError                     it stopped before the answer was complete
│   └── ProtocolError                it sent something that is not the next token
└── StreamError                      neither end could go on
"""


class DiscoError(Exception):
    """Root of every error this package raises on purpose."""


class InputError(DiscoError, ValueError):
    """A value outside what a function accepts."""


class ConstraintError(InputError):
    """Prices that do not make either end the scarce one: the caller has to choose."""


class EndpointError(DiscoError):
    """An end that could not answer, or stopped in the middle; the message begins with its name."""

    def __init__(self, endpoint: str, what: str) -> None:
        super().__init__(f"{endpoint}: {what}")
        self.endpoint = endpoint


class RefusedError(EndpointError):
    """It took no work: unreachable, not allowed, too many requests, or the prompt does not fit."""


class StalledError(EndpointError):
    """It sent nothing within its deadline."""


class CutError(EndpointError):
    """It stopped before the answer was complete: without a finish reason, however politely."""


class ProtocolError(EndpointError):
    """It sent something that is not the next token."""


class StreamError(DiscoError):
    """Neither end could go on; the reader has what was generated until then."""
