"""What is measured, each in a process of its own: seconds, and the peak memory of the process."""

import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset, data_preparation, item_vectors
from recbole_etegrec.data.dataset_files import check_dataset_files

Measured = dict[str, float]


class Marks:
    """Seconds of parts by name, and in the end the peak memory of the process."""

    def __init__(self, stage: str):
        self.stage, self.found = stage, {}

    @contextmanager
    def part(self, name: str):
        """Time a block."""
        started, used = time.perf_counter(), time.process_time()
        yield
        self.found[f"{self.stage}: {name}, s"] = time.perf_counter() - started
        self.found[f"{self.stage}: {name}, CPU s"] = time.process_time() - used

    def all(self) -> Measured:
        """What was measured."""
        # What `getrusage` says is that of the process this one came from, where that is more.
        status = Path("/proc/self/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20
        return {**self.found, f"{self.stage}: peak GiB": peak}


def config_of(folder: Path, **more) -> Config:
    """The configuration of a run on what was generated."""
    values = {"data_path": str(folder), "embedding_cache": f"{folder}/cache", "use_gpu": False}
    values |= {"show_progress": False, "state": "WARNING", "binary_from_mib": 0}
    return Config("ETEGRecLlama", "zipf", config_dict={**values, **more})


def text(folder: Path, _millions: float) -> Measured:
    """The way of small datasets."""
    config, marks = config_of(folder, binary_from_mib=None), Marks("text")
    with marks.part("check files"):
        check_dataset_files(config)
    with marks.part("load"):
        dataset = create_dataset(config)
        str(dataset)  # what a run logs of it
    with marks.part("split"):
        data_preparation(config, dataset)
    return marks.all()


def columns(folder: Path, _millions: float) -> Measured:
    """What is done once."""
    config, marks = config_of(folder), Marks("columns")
    with marks.part("from text"):
        create_dataset(config)
    return marks.all()


def start(folder: Path, _millions: float) -> Measured:
    """What each run begins with."""
    config, marks = config_of(folder), Marks("start")
    with marks.part("to the first batch"):
        dataset = create_dataset(config)
        str(dataset)
        loaders = data_preparation(config, dataset)
        for loader in loaders:
            next(iter(loader))
    return marks.all()


def epoch(folder: Path, _millions: float) -> Measured:
    """All batches of an epoch."""
    config, marks = config_of(folder), Marks("epoch")
    train_data = data_preparation(config, create_dataset(config))[0]
    with marks.part("draw"):
        train_data.draw(1)
    with marks.part("all batches"):
        targets = sum(batch.step_targets for (batch,) in train_data)
    seconds = marks.found["epoch: all batches, s"]
    return {**marks.all(), "epoch: million targets a second": targets / seconds / 1e6}


def embedding(folder: Path, _millions: float) -> Measured:
    """Collaborative vectors."""
    config, marks = config_of(folder, item_embedding="collaborative"), Marks("embedding")
    train = create_dataset(config).build()[0]
    with marks.part("collaborative"):
        item_vectors(config, train)
    return marks.all()


def kmeans(_folder: Path, millions: float) -> Measured:
    """Codebooks and codes of items around 5,000 random centres."""
    from recbole_etegrec.tokenizer.rqkmeans import RQKMeans
    from tests.benchmarks.scale.ranking import clustered

    items, marks = round(millions * 1e6 / 50), Marks("kmeans")
    vectors = clustered(items)
    tokenizer = RQKMeans(semantic_hidden_size=256, levels=3, code_num=256)
    with marks.part("codebooks"):
        tokenizer.start(vectors, 0)
    with marks.part("codes"):
        tokenizer.encode(vectors)
    return marks.all()


def codes(_folder: Path, millions: float) -> Measured:
    """Code table and trie, of codes as unequal as those of real items."""
    from recbole_etegrec.tokenizer import ItemCodes

    items, marks = round(millions * 1e6 / 10), Marks("codes")
    semantic = torch.from_numpy(_semantic_codes(items))
    table = ItemCodes(n_items=items + 1, code_length=4, code_num=256)
    with marks.part("table and trie"):
        table.rebuild(semantic)
    return marks.all()


def _semantic_codes(items: int) -> np.ndarray:
    """Codes ``[items, 3]``, some used ten times as often as others."""
    rng = np.random.default_rng(0)
    draws = rng.beta(1, 2, size=(items, 3)) * 256
    return draws.astype(np.int64)


def ranking(_folder: Path, millions: float) -> Measured:
    """Ten best items for 256 users, with the catalogue and with one of 12,000 items."""
    from tests.benchmarks.scale.ranking import seconds_of_rankers

    marks = Marks("ranking")
    items = round(millions * 1e6 / 50)
    small, large = (seconds_of_rankers(count) for count in (12_000, items))
    for name, seconds in large.items():
        marks.found[f"ranking: {name}, s"] = seconds
        marks.found[f"ranking: {name}, times 12k items"] = seconds / small[name]
    return marks.all()


STAGES: dict[str, Callable[[Path, float], Measured]] = {
    stage.__name__: stage
    for stage in (text, columns, start, epoch, embedding, kmeans, codes, ranking)
}
