"""Users a second of runs and ensembles, each against the first.

    python -m tests.benchmarks.ensemble RUN_DIR ENSEMBLE_DIR... [--users=4000] [--batch=256]

Ranks the whole histories of a sample of users, as `recommend` does, after a first pass that is not
counted; prints the best of three. Members of an ensemble stay in memory.
"""

import argparse
import sys
import time

import numpy as np

from recbole_etegrec import load_run
from recbole_etegrec.inference.histories import whole_histories
from recbole_etegrec.inference.recommend import rank


def users_a_second(run_dir: str, users: int, batch: int, k: int) -> float:
    """Of one run, the best of three passes."""
    _, model, dataset, *_ = load_run(run_dir)
    histories = whole_histories(model, dataset, model.exclude_history).histories
    rows = np.random.default_rng(0).permutation(len(histories.lengths))[:users]
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        rank(model, histories, rows, k, batch)  # ends on the CPU
        seconds.append(time.perf_counter() - begun)
    return len(rows) / min(seconds[1:])  # the first loads and warms up


def main() -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+")
    for name, value in (("users", 4000), ("batch", 256), ("k", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    first = None
    for run_dir in given.runs:
        speed = users_a_second(run_dir, given.users, given.batch, given.k)
        first = first or speed
        sys.stdout.write(f"{run_dir}: {speed:,.0f} users/s, {speed / first:.2f} of the first\n")


if __name__ == "__main__":
    main()
