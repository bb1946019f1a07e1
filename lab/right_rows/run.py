"""Run all cases, print those that are not right, and write `build/figures/data-right.json`."""

import sys
import time
from collections import Counter

from lab.figures import Figure, record
from lab.right_rows.case import run
from lab.right_rows.cases import ALL

LEAST_CASES = 120


def main() -> int:
    """Entry point; ends with 1 if a case is wrong."""
    started = time.monotonic()
    verdicts = [run(case) for case in ALL]
    wrong = [verdict for verdict in verdicts if verdict.problems]
    for verdict in wrong:
        print(f"{verdict.case.kind}: {verdict.case.name}{' (silent)' if verdict.is_silent else ''}")
        print("".join(f"    {problem}\n" for problem in verdict.problems), end="")
    kinds = Counter(case.kind for case in ALL)
    print(f"{len(ALL) - len(wrong)} of {len(ALL)} cases are right: " + ", ".join(f"{n} {k}" for k, n in kinds.items()))
    figures = [
        Figure("cases", len(ALL), "cases", "higher", must=LEAST_CASES),
        Figure("silent faults", sum(verdict.is_silent for verdict in verdicts), "cases", "lower", must=0),
        Figure("wrong values", len(wrong), "cases", "lower", must=0),
    ]
    record("data-right", figures, time.monotonic() - started)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
