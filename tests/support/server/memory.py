"""The peak of this process's memory, as scripts that tests start measure it."""

import re
from pathlib import Path


def peak_bytes() -> int:
    """Largest resident set since the program started.

    Not ru_maxrss: that of a child begins with its parent's, so nothing would ever grow beside a large pytest.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
