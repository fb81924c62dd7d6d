"""Start a compiled population again and again under load: every start must end well, and with the same numbers.

    HYPEROPT_ID_DATA=<folder with UCI_Energy> python scripts/stress_compiled.py --starts 50

Each start is a process of `train.py -c configs/uci_energy.yaml configs/Ours_HDLR.yaml --runs R` for a few
hyper-updates, compiled, with its chunks on threads; beside it, a busy loop of low priority runs on every core. The
first start compiles into an empty cache. The exit status is 0 if nothing failed or differed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIGS = ("uci_energy", "Ours_HDLR")


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Busy loops of low priority, while the block lasts."""
    command = ["nice", "-n", "10", sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def start(
    folder: Path, cache: Path, number: int, runs: int, updates: int, configs: Sequence[str]
) -> tuple[str | None, Any, float]:
    """(what went wrong, the numbers that were reported, seconds of compiling) of one start."""
    command = [sys.executable, str(ROOT / "train.py"), "-c", *(str(ROOT / "configs" / f"{c}.yaml") for c in configs)]
    settings = [f"inner={{updates: {updates}, steps: null, compile: on}}", "log.progress=none"]
    command += ["--runs", str(runs), "-l", str(folder), "-g", "stress", "-n", str(number), "-s", *settings]
    environment = {**os.environ, "HYPEROPT_ID_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode or "running eagerly" in done.stderr:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1], None, 0.0
    directory = folder / "stress" / str(number)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((directory / "summary.json").read_text())
    numbers = [{name: value for name, value in line.items() if name != "time"} for line in lines]
    return None, [numbers, summary["final"], summary["hyper"]], summary["seconds"]["compile"]


def stress(
    folder: Path, cache: Path, starts: int, runs: int, updates: int, configs: Sequence[str] = CONFIGS
) -> dict[str, Any]:
    """Counts of what failed and of what differs from the first start, and seconds of compiling."""
    errors: list[str] = []
    found: list[Any] = []
    seconds: list[float] = []
    with load(os.cpu_count() or 1):
        for number in range(starts):
            wrong, numbers, compiling = start(folder, cache, number, runs, updates, configs)
            if wrong is not None:
                errors.append(wrong)
                print(f"start {number}: {wrong}", flush=True)
            else:
                found.append(numbers)
                seconds.append(compiling)
    different = sum(numbers != found[0] for numbers in found)
    return {"starts": starts, "errors": len(errors), "different": different, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--updates", type=int, default=5, help="hyper-updates of each start")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the busy loops end with this process
    with tempfile.TemporaryDirectory() as folder:
        result = stress(Path(folder), Path(folder) / "cache", options.starts, options.runs, options.updates)
    first, *later = result["seconds"] or [0.0]
    typical = statistics.median(later) if later else 0.0
    print(
        f"{result['starts']} starts: {result['errors']} errors, {result['different']} with other numbers; seconds of "
        f"compiling: {first:.1f} at the first, later {typical:.2f} (median), {max(later, default=0.0):.2f} (most)"
    )
    return int(result["errors"] + result["different"] > 0)


if __name__ == "__main__":
    sys.exit(main())
