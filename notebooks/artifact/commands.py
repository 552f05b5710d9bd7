"""How a command of the artifact ends: 0, or one line on stderr and a number that says why; never a traceback."""

import os
import sys
from collections.abc import Callable

from disco_core.errors import DiscoError, InputError


def ending(command: Callable[[], int]) -> int:
    """What a command returns: 2 for a value it does not take, 1 for what went wrong, 130 for Ctrl-C."""
    try:
        return command()
    except DiscoError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except BrokenPipeError:  # who read what is printed has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, run the command again to go on", file=sys.stderr)
        return 130
