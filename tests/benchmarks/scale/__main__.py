"""How data, item embeddings, tokenizer and ranking grow with their size.

    python -m tests.benchmarks.scale [--sizes 1 10 100] [--stages text columns start ...]
                                     [--folder FOLDER] [--json FILE]

For each size, in millions of interactions, an atomic file is generated (a user to 20 interactions,
an item to 50, popularity after Zipf, lines in random order; none of it follows any order that could
be learnt). Each stage runs in a process of its own. Prints seconds by the clock and in CPU seconds
(which a busy machine stretches less), the peak memory of the process (pages of mapped files
included), and the exponents with which they grow: 1 is linear.

Stages, with what the size stands for:
    text        a small dataset's way: the text is checked, loaded, split (interactions)
    columns     text to binary columns, as it is done once (interactions)
    start       binary columns to the first batch of training and of test (interactions)
    epoch       all batches of an epoch of training (interactions)
    embedding   collaborative item embeddings (interactions)
    kmeans      codebooks of residual k-means, then codes of all items (items: interactions / 50)
    codes       code table and trie (items: interactions / 10)
    ranking     beams, and the item head with codes, for 256 users (items: interactions / 50)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.scale.generate import generate
from tests.benchmarks.scale.stages import STAGES

MODULE = "tests.benchmarks.scale"
_OF_DATA = ("text", "columns", "start", "epoch", "embedding")


def measure_size(millions: float, stages: list[str], folder: Path) -> dict[str, float]:
    """What fresh processes measure on generated data, one for each stage."""
    if set(stages) & set(_OF_DATA) and not (folder / "zipf").exists():
        generate(folder, round(millions * 1e6))
    found = {"millions": millions}
    for stage in stages:
        measured = in_own_process(stage, folder, millions)
        sys.stderr.write(f"{millions:g}M {stage}: {json.dumps(measured)}\n")
        found |= measured
    return found


def in_own_process(stage: str, folder: Path, millions: float) -> dict[str, float]:
    """What a fresh process measures."""
    command = [sys.executable, "-m", MODULE, f"--stage={stage}"]
    command += [f"--folder={folder}", f"--sizes={millions}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def table(results: list[dict[str, float]]) -> str:
    """A row for each measure, a column for each size, and the exponent of growth."""
    sizes = [result["millions"] for result in results]
    lines = [f"{'':32}" + "".join(f"{size:>9g}M" for size in sizes) + "  exponent"]
    for name in results[0]:
        values = [result.get(name, np.nan) for result in results]
        if name == "millions":
            continue
        lines.append(f"{name:32}" + "".join(f"{value:10.2f}" for value in values))
        if len(sizes) > 1 and values[0] > 0.1:  # shorter ones are noise
            lines[-1] += f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:10.2f}"
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where data are generated, and left")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # of the process that measures
    arguments = parser.parse_args()
    if arguments.stage:
        found = STAGES[arguments.stage](arguments.folder, arguments.sizes[0])
        sys.stdout.write(json.dumps(found) + "\n")
        return
    results = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.folder / f"{size:g}M" if arguments.folder else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            results.append(measure_size(size, arguments.stages, folder))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    sys.stdout.write(f"{table(results)}\nload of the machine in the end: {load}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
