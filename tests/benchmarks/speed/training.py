"""Training: whole sequences against a row a prefix, and against RecBole's SASRec."""

import copy
import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data.item_embedding import embedding_sources
from recbole_etegrec.data.loader import SequenceBatch, SequenceLoader
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.runs.baseline import _make_model, _prepare, _trainer
from recbole_etegrec.runs.parts import load_data
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.schedule import Stage
from tests.benchmarks.first_design import padding_masked, prefix_loader
from tests.benchmarks.flops import useful_flops
from tests.benchmarks.speed.measure import Stopwatch, Work, against, limits

STAGE = Stage("final", "recommender", {"recommendation": 1.0})
WITH_HEAD = Stage("final", "recommender", {"recommendation": 1.0, "item": 0.3})
STEPS = 12  # of an epoch, of all lengths of sequences alike
BUCKETS = {"Beauty": 8, "ml-100k": 1}  # of the length-bucketed prefixes; long ones take their time


def training_rows(
    values: dict, watch: Stopwatch, datasets: list[str], folder: str
) -> Iterator[dict]:
    """Rows on each dataset, then the share of the machine that a wider model reaches."""
    for dataset in datasets:
        config = Config("ETEGRecLlama", dataset, config_dict=values)
        engine, train = engine_of(config, folder)
        works = {"ours": steps_of(engine, train, STEPS)}
        for name, buckets in (("random", 0), ("bucketed", BUCKETS[dataset])):
            loader = prefix_loader(train._dataset, config["code_length"], 0, bool(buckets))
            works[name] = steps_of(as_first_design(engine), loader, buckets or 1)
        works["SASRec"] = sasrec(values, dataset)
        found = watch.in_turn(works)
        titles = {
            "random": ("a row a prefix, random batches of 512", 150),
            "bucketed": ("a row a prefix, batches of 512 by length", 10),
            "SASRec": ("an epoch of RecBole's SASRec", 3),
        }
        for name, (title, target) in titles.items():
            row = against(name, found, f"training, {dataset}: {title}", "targets/s")
            yield {**row, "target": target if dataset == "Beauty" or name == "SASRec" else None}
        yield padding_row(train, dataset)
    yield head_row(values, watch, datasets[0], folder)
    yield width_row(values, watch, datasets[0], folder, 256)


def padding_row(train: SequenceLoader, dataset: str) -> dict:
    """Padding among the tokens of an epoch."""
    lengths = train.windows.end - train.windows.start
    padded = sum(lengths[rows].max() * len(rows) for rows in train.steps)
    return {
        "row": f"padding, {dataset}",
        "ratio": 1 - lengths.sum() / padded,
        "unit": "share of tokens",
        "target": 0.05,
        "lower": True,
    }


def head_row(values: dict, watch: Stopwatch, dataset: str, folder: str) -> dict:
    """The same steps with an item head and without."""
    works = {}
    for name, head in (("ours", True), ("without", False)):
        config = Config("ETEGRecLlama", dataset, config_dict={**values, "item_head": head})
        engine, train = engine_of(config, folder)
        works[name] = steps_of(engine, train, STEPS, WITH_HEAD if head else STAGE)
    found = watch.in_turn(works)
    row = against("without", found, f"training, {dataset}: with an item head", "targets/s")
    return {**row, "target": 0.8}


def width_row(values: dict, watch: Stopwatch, dataset: str, folder: str, width: int) -> dict:
    """Useful operations a second of a wider model, as a share of the machine's."""
    wide = {**values, "hidden_size": width, "intermediate_size": 4 * width}
    config = Config("ETEGRecLlama", dataset, config_dict=wide)
    engine, train = engine_of(config, folder)
    found = watch.in_turn({"ours": steps_of(engine, train, STEPS)})
    limit = limits(found)
    return {
        "row": f"training, width {width}: share of the matmul rate",
        "ours": 1 / found["ours"].seconds,
        "unit": "targets/s",
        "ratio": limit["share"],
        "target": 0.5,
        **limit,
    }


def engine_of(config: Config, folder: str) -> tuple[Engine, SequenceLoader]:
    """An engine ready for recommender steps, on random item embeddings, and the data."""
    _, (train, *_) = load_data(config)
    generator = torch.Generator().manual_seed(0)
    width = config["semantic_hidden_size"] * len(embedding_sources(config))
    embedding = torch.randn(train._dataset.item_num, width, generator=generator)
    engine = Engine(config, ETEGRecLlama(config, train._dataset, embedding), RunDirectory(folder))
    engine.freeze_all_but("recommender")
    for group in engine.bare_optimizer("recommender").param_groups:
        group["lr"] = 1e-3
    return engine, train


def as_first_design(engine: Engine) -> Engine:
    """The same weights and optimizer, with the mask of padding that LLaMA is usually given."""
    first = copy.copy(engine)

    def losses(batch: SequenceBatch, stage: Stage) -> dict[str, torch.Tensor]:
        with padding_masked(engine.model.recommender, batch.items):
            return engine.model.losses(stage.weights, batch, engine.recommender)

    first.losses = losses
    return first


def steps_of(engine: Engine, loader: SequenceLoader, count: int, stage: Stage = STAGE) -> Work:
    """Steps of an epoch: the middle ones of equal parts, by how long their sequences are."""
    lengths = loader.windows.end - loader.windows.start
    order = np.argsort([lengths[rows].mean() for rows in loader.steps], kind="stable")
    chosen = order[((np.arange(count) + 0.5) * len(order) / count).astype(int)]
    batches = [next(loader.iterate(int(i))) for i in chosen]
    targets = sum(micro_batches[0].step_targets for micro_batches in batches)

    def run() -> None:
        for micro_batches in batches:
            engine.step(micro_batches, stage)

    flops = useful_flops(engine.model.recommender, (b for step in batches for b in step))
    return Work(run, targets, flops, small=lambda: engine.step(batches[0], stage))


def sasrec(values: dict, dataset: str) -> Work:
    """A batch of RecBole's SASRec, of its default size, by RecBole's own trainer."""
    names = ("data_path", "state", "use_gpu", "seed")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = RunDirectory(folder)
        config = Config("SASRec", dataset, config_dict={k: values[k] for k in names if k in values})
        _, train_data, *_ = _prepare(config)
        trainer = _trainer(config, _make_model(config, train_data), run_dir)
    batch = next(iter(train_data))
    return Work(
        lambda: trainer._train_epoch([batch], 0),
        len(batch),
        small=lambda: trainer._train_epoch([batch[:64]], 0),
    )
