"""How loading, splitting and batching grow with the data.

    python -m tests.benchmarks.scale [--sizes 1 2 5 10] [--embedding] [--json=FILE]

For each size, in millions of interactions, an atomic file is generated in a temporary folder
(a user to 20 interactions, an item to 50, popularity after Zipf, lines in random order) and read
through in a process of its own. Prints seconds of each part, their sum by the clock and in CPU
seconds (which a busy machine stretches less), the peak memory of the process, and the exponent
with which each grows over the sizes: 1 is linear. With `--embedding` the collaborative item
embeddings are made too, which takes longer than all the rest.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

LOADING = ("check files", "load", "split", "epoch", "eval batch")
PARTS = (*LOADING, "embedding")
MODULE = "tests.benchmarks.scale"


def generate(folder: Path, interactions: int, seed: int = 0) -> None:
    """Write ``folder/zipf/zipf.inter``: users of very different activity, few popular items."""
    rng = np.random.default_rng(seed)
    users, items = interactions // 20, interactions // 50
    activity = np.cumsum(rng.lognormal(sigma=1.0, size=users))
    popularity = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    columns = {"timestamp:float": rng.integers(1_600_000_000, 1_700_000_000, interactions)}
    for name, weights in (("item_id:token", popularity), ("user_id:token", activity)):
        drawn = np.searchsorted(weights, rng.random(interactions) * weights[-1])
        columns = {name: rng.permutation(len(weights))[drawn], **columns}
    (folder / "zipf").mkdir()
    pd.DataFrame(columns).to_csv(folder / "zipf" / "zipf.inter", sep="\t", index=False)


def measure(folder: str, embedding: bool) -> dict[str, float]:
    """Seconds of each part, in this process, and its peak memory."""
    from recbole_etegrec.config import Config
    from recbole_etegrec.data import create_dataset, data_preparation, load_item_embedding
    from recbole_etegrec.data.dataset_files import check_dataset_files

    values = {"data_path": folder, "embedding_cache": f"{folder}/cache", "show_progress": False}
    config = Config("ETEGRecLlama", "zipf", config_dict={**values, "state": "WARNING"})
    marks, cpu = [time.perf_counter()], time.process_time()

    def mark() -> None:
        marks.append(time.perf_counter())

    check_dataset_files(config)
    mark()
    dataset = create_dataset(config)
    str(dataset)  # what a run logs of it
    mark()
    train_data, *held_out = data_preparation(config, dataset)
    mark()
    targets = sum(batch.step_targets for (batch,) in train_data)
    mark()
    for loader in held_out:
        next(iter(loader))
    mark()
    cpu = time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # from KiB
    if embedding:
        load_item_embedding(config, train_data._dataset)
        mark()
    seconds = dict(zip(PARTS, np.diff(marks).tolist(), strict=False))
    total = sum(seconds[part] for part in LOADING)
    return {**seconds, "targets": targets, "total": total, "CPU": cpu, "peak GiB": memory}


def measure_size(millions: float, embedding: bool) -> dict[str, float]:
    """What a fresh process measures on generated data."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), round(millions * 1e6))
        command = [sys.executable, "-m", MODULE, f"--folder={folder}"]
        command += ["--embedding"] * embedding
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"millions": millions, **json.loads(output.splitlines()[-1])}


def table(results: list[dict[str, float]]) -> str:
    """A row for each measure, a column for each size, and the exponent of growth."""
    sizes = [result["millions"] for result in results]
    lines = [f"{'seconds':12}" + "".join(f"{size:>9g}M" for size in sizes) + "  exponent"]
    for name in (*LOADING, "total", "CPU", "embedding", "peak GiB"):
        if name in results[0]:
            values = [result[name] for result in results]
            lines.append(f"{name:12}" + "".join(f"{value:10.2f}" for value in values))
            if len(sizes) > 1 and values[0] > 0.1:  # shorter ones are noise
                lines[-1] += f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:10.2f}"
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--embedding", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of the process that measures
    arguments = parser.parse_args()
    if arguments.folder:
        sys.stdout.write(json.dumps(measure(arguments.folder, arguments.embedding)) + "\n")
        return
    results = [measure_size(size, arguments.embedding) for size in arguments.sizes]
    sys.stdout.write(table(results) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
