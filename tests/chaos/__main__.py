"""Kills, power losses, damaged files and strange input, in numbers: python tests/chaos PART... [--count N] [--seed S]

A part is a module `chaos_<part>.py` beside this file. It has

    COUNT                            how many trials the long form makes
    trials(count, seed, folder)      -> an `Outcome` for each of them; folder is empty, and the part's own

Everything random in a trial follows from the seed. The short form of a part is a test in `test_chaos_<part>.py`, which
takes a few of the same trials. Exit status 1 if any outcome has a fault.
"""

import argparse
import importlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PARTS = sorted(path.stem.removeprefix("chaos_") for path in Path(__file__).parent.glob("chaos_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--count", type=int, help="trials of each part (default: its own number)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return max([run(part, options.count, options.seed) for part in options.parts or PARTS], default=0)


def run(name: str, count: int | None, seed: int) -> int:
    """Make the trials of a part and print what came of them; 1 if there was a fault."""
    part = importlib.import_module(f"chaos_{name}")
    began, counts = time.monotonic(), Counter()
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        for outcome in part.trials(count or part.COUNT, seed, Path(folder)):
            counts["trials"] += 1
            counts["events"] += outcome.events
            counts[outcome.fault or "right"] += 1
            if outcome.fault:
                print(f"{name}: {outcome.fault}: {outcome.what}: {outcome.detail}", flush=True)
    said = ", ".join(f"{number} {key}" for key, number in counts.items())
    print(f"{name}: {said}; {time.monotonic() - began:.0f} s", flush=True)
    return int(counts["right"] < counts["trials"])


if __name__ == "__main__":
    sys.exit(main())
