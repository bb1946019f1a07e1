"""Peak memory of a process, for scripts that tests start."""

import re
from pathlib import Path


def peak_bytes() -> int:
    """Return the largest resident set since the program started.

    Not ru_maxrss, because that of a child starts with its parent's, which is larger in pytest.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
