"""What comes before the first step of the recommender."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from recbole_etegrec.config import Config
from recbole_etegrec.data.item_loader import ItemLoader
from recbole_etegrec.trainer.schedule import pretraining
from tests.benchmarks.speed.growth import rebuild
from tests.benchmarks.speed.measure import Stopwatch, Work
from tests.benchmarks.speed.training import engine_of

PATIENCE = 300  # seconds


def startup_rows(
    values: dict, watch: Stopwatch, datasets: list[str], folder: str
) -> Iterator[dict]:
    """Seconds by the clock, of the command; by the watch, of the rest."""
    for kind in ("cold", "warm"):
        run_dir = Path(folder, f"run-{kind}")
        yield {
            "row": f"startup, {datasets[0]}: command to the first epoch, {kind} cache",
            "ratio": first_epoch(values, datasets[0], run_dir, Path(folder, "cache")),
            "unit": "s",
        }
    config = Config("ETEGRecLlama", datasets[0], config_dict=values)
    engine, train = engine_of(config, folder)
    model = engine.model
    engine.freeze_all_but("tokenizer")
    loader = ItemLoader(model.n_items, batch_size=config["tokenizer_batch_size"], seed=0)
    stage = pretraining(config).stages[0]

    def pretrain() -> None:
        loader.draw(0)
        for step in loader.iterate():
            engine.step(step, stage)
        engine.revive_codes(loader.generator)
        model.codes.health(model.tokenizer.encode(model.item_embedding[1:]))

    items = train._dataset.item_num - 1
    found = watch.in_turn({"pretraining": Work(pretrain), "rebuild": Work(rebuild(1_000_000))})
    epochs = config["tokenizer_epochs"]
    yield {
        "row": f"RQ-VAE pretraining of {items} items, {epochs} epochs",
        "ratio": found["pretraining"].seconds * epochs,
        "unit": "s",
    }
    yield {
        "row": "code table and trie of 1M items",
        "ratio": found["rebuild"].seconds,
        "unit": "s",
        "target": 5,
        "lower": True,
    }


def first_epoch(values: dict, dataset: str, run_dir: Path, cache: Path) -> float:
    """Seconds until a run has written its first line, an epoch of pretraining; it is then ended."""
    arguments = {**values, "dataset": dataset, "run_dir": run_dir, "embedding_cache": cache}
    arguments["item_embedding"] = "collaborative"
    command = [sys.executable, str(Path(__file__).parents[3] / "run_recbole.py")]
    command += [f"--{key}={value}" for key, value in arguments.items()]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        record = run_dir / "metrics.jsonl"
        while not (record.is_file() and record.stat().st_size):
            if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                raise SystemExit(f"no first epoch: {' '.join(command)}")
            time.sleep(0.05)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()
