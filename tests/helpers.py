"""Small real models, configurations and loaders for the tests of the core."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from recbole.utils import init_seed
from torch import nn

from recbole_etegrec.config import Config
from recbole_etegrec.data import (
    SequenceBatch,
    WholeSequenceDataset,
    create_dataset,
    data_preparation,
    item_vectors,
)
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.model import MODELS, ETEGRecLlama
from recbole_etegrec.recommender import (
    BACKBONES,
    CodeEmbedding,
    EncoderDecoder,
    ItemHead,
    Recommender,
)
from recbole_etegrec.tokenizer import ItemCodes

# What `write_interactions` cannot give: real data, kept outside the repository.
REAL_DATA = Path(os.environ.get("RECBOLE_ETEGREC_DATA", Path(__file__).parents[1] / "dataset"))

SMALL_MODEL = {
    "item_embedding": "collaborative",
    "semantic_hidden_size": 10,
    "code_num": 16,
    "e_dim": 12,
    "tokenizer_hidden_sizes": [16],
    "tokenizer_epochs": 2,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_size": None,
    "intermediate_size": 32,
    "init_std": 0.2,  # larger than the default, so that an untrained model tells items apart
    "dropout": 0.0,
    "residual_dropout": 0.0,
    "item_head": False,  # codes alone, where a test does not ask for it
    "item_decoder_layers": 1,
    "item_decoder_size": 8,
    "item_dropout": 0.0,
    "epochs": 2,
    "finetune_epochs": 1,
    "warmup_steps": 1,
    "eval_batch_size": 64,
    "show_progress": False,
    "state": "WARNING",
}


class Loaders(NamedTuple):
    """What `data_preparation` returns."""

    train: SequenceLoader
    valid: object
    test: object


def small_values(data_path: str, **more) -> dict:
    """Values of a configuration in which a run takes seconds."""
    return {**SMALL_MODEL, "data_path": data_path, "embedding_cache": f"{data_path}/cache", **more}


def small_config(
    data_path: str, dataset: str = "tiny", model: str = "ETEGRecLlama", **more
) -> Config:
    """The configuration of a small model."""
    return Config(model, dataset, config_dict=small_values(data_path, **more))


def small_data(config: Config) -> tuple[WholeSequenceDataset, Loaders]:
    """The dataset of a configuration and its three loaders."""
    dataset = create_dataset(config)
    return dataset, Loaders(*data_preparation(config, dataset))


def embedding_of(data_path: str, dataset: str = "tiny", **more) -> np.ndarray:
    """The item embeddings of a small configuration."""
    config = small_config(data_path, dataset, **more)
    return item_vectors(config, small_data(config)[1].train._dataset).embedding


def whole_steps(loader: SequenceLoader) -> list[SequenceBatch]:
    """The steps of a loader that is not split, each as its one batch."""
    budget, loader.max_items = loader.max_items, 10**9  # no step is computed in parts
    steps = [batch for (batch,) in loader]
    loader.max_items = budget
    return steps


def micro_batches_of(
    loader: SequenceLoader, micro_batches: int, processes: int
) -> list[list[list[SequenceBatch]]]:
    """What each process is given, for each step its micro-batches."""
    ranks = []
    for rank in range(processes):
        loader.split(micro_batches, processes, rank)
        ranks.append(list(loader))
    loader.split()
    return ranks


def small_model(config: Config) -> tuple[ETEGRecLlama, Loaders]:
    """An untrained model of a configuration, in evaluation mode, and its loaders."""
    loaders = small_data(config)[1]
    init_seed(config["seed"], True)
    return MODELS[config["model"]](config, loaders.train._dataset).eval(), loaders


def small_recommender(
    backbone: str = "llama",
    *,
    code_length: int = 4,
    code_num: int = 8,
    pooling: str = "last",
    dropout: float = 0.0,
    train_codebooks: bool = True,
    head_items: int = 0,
) -> Recommender:
    """A two-layer backbone with the tied code embedding, in evaluation mode.

    Args:
        head_items: that an item head learns, the padding item included; its free vectors are
            random. 0: there is no head.
    """
    torch.manual_seed(3)
    model = BACKBONES[backbone](
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=256,
        init_std=0.3,
    )
    embedding = CodeEmbedding(
        code_length=code_length,
        code_num=code_num,
        e_dim=12,
        hidden_size=16,
        init_std=0.3,
        train_codebooks=train_codebooks,
    )
    kind = {"llama": Recommender, "t5": EncoderDecoder}[backbone]
    recommender = kind(
        model,
        embedding,
        semantic_hidden_size=10,
        dropout=dropout,
        alignment_pooling=pooling,
        init_std=0.3,
    )
    if head_items:
        recommender.item_head = small_item_head(head_items)
    return recommender.eval()


def small_item_head(items: int, **more) -> ItemHead:
    """An item head of two readers and random vectors, in evaluation mode; states are 16 wide."""
    options = {"enters": True, "repeats": True, "dropout": 0.0, "vector_dropout": 0.0}
    options |= {"decoder_layers": 1, "decoder_size": 8, "max_items": 64, **more}
    head = ItemHead(items=items, hidden_size=16, embedding_width=10, init_std=0.5, **options).eval()
    nn.init.normal_(head.free, std=0.5)
    head.lend(torch.randn(items, 10))
    return head


def small_item_codes(
    *, n_items: int = 40, code_length: int = 4, code_num: int = 8, used: int = 3, seed: int = 0
) -> ItemCodes:
    """Random codes of `n_items` items and the padding item; `used` codes a semantic level."""
    generator = torch.Generator().manual_seed(seed)
    codes = ItemCodes(n_items=n_items + 1, code_length=code_length, code_num=code_num)
    codes.rebuild(torch.randint(used, (n_items, code_length - 1), generator=generator))
    return codes


def parameters_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters, to compare with later."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed_since(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters that differ, in any bit, from a copy of `parameters_of`."""
    return {
        name for name, value in module.named_parameters() if not torch.equal(value, before[name])
    }


def beauty_path() -> str:
    """The data_path of Amazon Beauty; skips the test that asks where there is none."""
    if not (REAL_DATA / "Beauty" / "Beauty.inter").is_file():
        pytest.skip(f"Amazon Beauty is not in {REAL_DATA}")
    return str(REAL_DATA)
