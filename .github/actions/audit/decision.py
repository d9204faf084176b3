"""Print the decision of an audit that has just ended, if its exit status and what it wrote agree.

Usage: decision.py RUN_FOLDER STATUS. Prints `error` otherwise: an exit status alone may also be
what a broken installation ends with.
"""

import json
import sys
from pathlib import Path

STATUS = {"consistent": 0, "inconsistent": 1, "inconclusive": 3}


def read_decision(out: Path) -> str:
    """The decision that a run folder holds; of several targets the worst news."""
    if not (out / "summary.json").exists():
        return str(json.loads((out / "report.json").read_bytes())["decision"])
    targets = json.loads((out / "summary.json").read_bytes())["targets"]
    found = {target["decision"] for target in targets}
    if "inconsistent" in found:
        return "inconsistent"
    return "consistent" if found == {"consistent"} else "inconclusive"


try:
    decision = read_decision(Path(sys.argv[1]))
except (OSError, ValueError, TypeError, KeyError, RecursionError):
    decision = "error"
if STATUS.get(decision) != int(sys.argv[2]):
    decision = "error"
print(decision)  # noqa: T201 - to be read by the action
