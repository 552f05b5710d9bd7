"""How a command of the artifact ends: 0, or one line on stderr and a number that says why."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from disco_core.errors import DiscoError, InputError

P = ParamSpec("P")


def command(interrupted: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorate a `main`: 2 for a value it does not take, 1 for what went wrong, 130 for Ctrl-C; never a traceback."""

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @wraps(main)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except DiscoError as error:
                print(error, file=sys.stderr)
                return 2 if isinstance(error, InputError) else 1
            except OSError as error:
                print(f"{error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print(f"interrupted; {interrupted}", file=sys.stderr)
                return 130

        return guarded

    return decorate
