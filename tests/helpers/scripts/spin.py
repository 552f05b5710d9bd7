"""Take a core for two seconds; with `orphan`, in a process that outlives this one."""

import subprocess
import sys
import time

if sys.argv[1:] == ["orphan"]:
    subprocess.Popen([sys.executable, __file__], start_new_session=True)
else:
    end = time.monotonic() + 2
    while time.monotonic() < end:
        pass
