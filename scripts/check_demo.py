"""Check that the run of the demo kept its promise: 60% of the channels go, and accuracy stays.

    python scripts/check_demo.py runs/demo

The exit status is 1 if fewer than 60% of the channels were removed, the proof is missing or above 1e-9, the dense
network has less than 97% test accuracy, or the fine-tuned one is more than a point behind it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    stages = json.loads((Path(sys.argv[1]) / "result.json").read_text(encoding="utf-8"))["stages"]
    pruned, dense, tuned = stages["prune"], stages["baseline"]["accuracy"], stages["finetune"]["accuracy"]
    channels, verification = pruned["pruned"]["channels"], pruned["verification"]
    kept = {
        "60% of the channels are removed": channels["after"] <= 0.4 * channels["before"],
        "the cut is proven": verification["passed"] and verification["max_relative_error"] <= 1e-9,
        "the dense network has 97%": dense > 0.97,
        "the fine-tuned network is at most a point behind": tuned >= dense - 0.01,
    }
    broken = [promise for promise, is_kept in kept.items() if not is_kept]
    if broken:
        sys.exit(f"{sys.argv[1]}: not kept: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
