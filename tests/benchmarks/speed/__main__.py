"""How fast training and ranking are, each row told against another way of doing the same.

    python -m tests.benchmarks.speed [--data_path=DIR] [--rows=training,ranking,...] [--out=FILE]

Prints a table and writes it as JSON. The sides of a row share backbone and data, are timed in turn
(A B A B ...), and where they must give the same results these are compared: a difference is an
error. Every row also says how fast the machine multiplies matrices in the same minutes, and which
share of that our side reaches, padding not counted.

    training   whole sequences against prefix rows, and against RecBole's SASRec
    ranking    beam search against no cache, transformers' `generate`, exact ranking
    growth     with history, catalogue, beams and width: exponents
    startup    from the command to the first step; tokenizer; code table and trie of 1M items
    memory     peak bytes, beside what must be held

`--threads=N` (all cores), `--rounds=N` (3), `--clock=cpu` (with one thread) where others use the
machine too. All of it takes some eight minutes on two cores.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.benchmarks.speed.growth import growth_rows
from tests.benchmarks.speed.measure import Stopwatch
from tests.benchmarks.speed.memory import memory_rows
from tests.benchmarks.speed.ranking import ranking_rows
from tests.benchmarks.speed.startup import startup_rows
from tests.benchmarks.speed.training import training_rows

SECTIONS = {
    "training": training_rows,
    "ranking": ranking_rows,
    "growth": growth_rows,
    "startup": startup_rows,
    "memory": memory_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--datasets", default="Beauty,ml-100k")
    parser.add_argument("--rows", default=",".join(SECTIONS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    watch = Stopwatch(options.clock, options.rounds)
    values = {"data_path": options.data_path, "state": "ERROR", "use_gpu": False}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for section in options.rows.split(","):
            started = time.perf_counter()
            for row in SECTIONS[section](values, watch, options.datasets.split(","), folder):
                rows.append({"section": section, **row})
                sys.stdout.write(line(row) + "\n")
                sys.stdout.flush()
            sys.stdout.write(f"{section}: {time.perf_counter() - started:.0f} s\n")
    if options.out:
        about = {"threads": options.threads, "clock": options.clock, "torch": torch.__version__}
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def line(row: dict) -> str:
    """A row of the table: name, both sides, ratio, target, limit."""
    cells = [f"{row['row']:62}"]
    for name in ("ours", "other"):
        cells.append(f"{row[name]:10.4g}" if name in row else " " * 10)
    cells.append(f"{row.get('unit', ''):16}{row['ratio']:9.3g}")
    if row.get("target") is not None:
        sign = "<=" if row.get("lower") else ">="
        met = (row["ratio"] <= row["target"]) if row.get("lower") else row["ratio"] >= row["target"]
        cells.append(f" {sign} {row['target']:<6g}{'' if met else 'MISSED':7}")
    else:
        cells.append(" " * 17)
    if "share" in row:
        cells.append(f"{row['share']:6.0%} of {row['matmul_gflops']:.0f} GFLOP/s")
    return " ".join(cells)


if __name__ == "__main__":
    main()
