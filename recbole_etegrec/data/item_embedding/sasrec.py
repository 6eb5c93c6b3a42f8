"""Item embeddings learned by RecBole's SASRec: trained here, or taken from a finished run of it.

RecBole trains on a row for each prefix of a sequence, padded to the longest history. Its encoder
is causal and counts positions from the start, so here a whole sequence passes it once and each
of its positions predicts the next item: the same function, for a fraction of the work. A fixed
number of epochs needs no validation, so nothing that is held out is ever seen.
"""

import logging
import pickle
from collections import ChainMap
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from recbole.model.abstract_recommender import SequentialRecommender
from tqdm import trange

from recbole_etegrec.config import RECBOLE_PROPERTIES, Config, Loader, find_model
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.dataset_files import check_dataset_files
from recbole_etegrec.data.item_embedding.cache import cached, interactions_digest
from recbole_etegrec.data.item_embedding.cold_items import fill_cold_items
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.data.preparation import create_dataset
from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.digests import bytes_digest
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

STEP_ITEMS = 1024
LEARNING_RATE = 0.001  # RecBole's default, as all that is not named here


def whole_sequence_states(sasrec: SequentialRecommender, items: torch.Tensor) -> torch.Tensor:
    """What predicts the item after each position.

    Args:
        sasrec: RecBole's model.
        items: histories ``[B, T]``, right-padded with 0.

    Returns:
        ``[B, T, H]``; at position ``t`` what its ``forward`` gives for the history ending there.
    """
    position = torch.arange(items.shape[1], device=items.device)
    hidden = sasrec.item_embedding(items) + sasrec.position_embedding(position)
    hidden = sasrec.dropout(sasrec.LayerNorm(hidden))
    mask = sasrec.get_attention_mask(items)
    return sasrec.trm_encoder(hidden, mask, output_all_encoded_layers=False)[-1]


def sasrec_embedding(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    """SASRec's item embeddings (SASRec, ICDM 2018; cross-entropy over all items).

    From the run in ``sasrec_run`` where one is named; else trained for ``sasrec_epochs`` epochs
    and cached in ``embedding_cache`` under a manifest of the training interactions and settings.

    Raises:
        UserError: ``sasrec_run`` cannot be read, or has not trained on these interactions.
    """
    if config["sasrec_run"]:
        vectors = _vectors_of_run(config, dataset)
    else:
        architecture = _architecture(config)
        manifest = {
            "source": "sasrec: whole sequences, cross-entropy over all items, Adam",
            "interactions": interactions_digest(dataset),
            "items": int(dataset.item_num),
            "windows": bytes_digest(np.concatenate(dataset.windows).tobytes()),
            "window_overlap": config["window_overlap"],
            "epochs": config["sasrec_epochs"],
            "step_items": STEP_ITEMS,
            "learning_rate": LEARNING_RATE,
            "seed": config["seed"],
            **architecture,
        }
        folder = Path(config["embedding_cache"])
        vectors = cached(folder, manifest, lambda: _train(config, architecture, dataset))
    # All that training teaches of an item in no sequence is that it is never the next one.
    items = dataset.inter_feat[dataset.iid_field].numpy()
    lengths = np.diff(dataset.offsets)
    seen = items[np.repeat(lengths > 1, lengths)]
    cold = np.setdiff1d(np.arange(1, len(vectors)), seen)
    vectors[cold] = 0
    fill_cold_items(
        vectors, cold, np.random.default_rng(config["seed"]), "have no neighbour in training"
    )
    return vectors


def _architecture(config: Config) -> dict[str, Any]:
    """RecBole's settings of SASRec, at the width of the embeddings."""
    width = config["semantic_hidden_size"]
    defaults = yaml.load((RECBOLE_PROPERTIES / "model" / "SASRec.yaml").read_text("utf-8"), Loader)
    length = config["MAX_ITEM_LIST_LENGTH"]
    scaled = {"hidden_size": width, "inner_size": 4 * width, "MAX_ITEM_LIST_LENGTH": length}
    return {**defaults, **scaled}


def _train(
    config: Config, architecture: dict[str, Any], dataset: WholeSequenceDataset
) -> np.ndarray:
    """The item embeddings ``[N, semantic_hidden_size]`` of a SASRec trained on a dataset."""
    device, epochs = config["device"], config["sasrec_epochs"]
    loader = SequenceLoader(
        dataset,
        max_tokens=STEP_ITEMS,
        code_length=1,
        training_rows="sequences",
        window_overlap=config["window_overlap"],
        cut_probability=0.0,
        seed=config["seed"],
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config["seed"])
        model = find_model("SASRec")(ChainMap(architecture, config), dataset).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        losses = []
        with trange(epochs, desc="SASRec", disable=not config["show_progress"]) as bar:
            for epoch in bar:
                loader.draw(epoch)
                losses.append(_train_epoch(model, loader, optimizer, device))
                bar.set_postfix(loss=f"{losses[-1]:.4f}")
    logger.info(
        "item embeddings: SASRec, %d epochs, loss %.4f in the first, %.4f in the last",
        epochs,
        losses[0],
        losses[-1],
    )
    return model.item_embedding.weight.detach().cpu().numpy()


def _train_epoch(
    model: SequentialRecommender,
    loader: SequenceLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> float:
    """One pass over the training sequences; returns the mean loss of a target, in nats."""
    total, count = torch.zeros((), device=device), 0
    for (batch,) in loader:
        batch = batch.to(device)
        states = whole_sequence_states(model, batch.items[:, :-1])  # [B, T - 1, H]
        states = states.flatten(0, 1)[batch.target_index]  # [n, H]
        loss = F.cross_entropy(states @ model.item_embedding.weight.T, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * batch.step_targets
        count += batch.step_targets
    return float(total) / count


def _vectors_of_run(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    """The item embeddings of a run of RecBole's SASRec, matched to items by their tokens.

    The checkpoint is a pickle, as RecBole writes it: name only runs you trust.
    """
    run_dir = RunDirectory(config["sasrec_run"])
    try:
        values = run_dir.read_config()
        if values.get("model") != "SASRec":
            raise UserError(f"{run_dir.path} is a run of {values.get('model')}, not of SASRec")
        values.pop("gpu_id", None)  # of that run, and it would hide devices of this process
        run_config = Config(config_dict=values)
        check_dataset_files(run_config)
        theirs = create_dataset(run_config).build()[0]
    except UserError as error:
        raise UserError(f"sasrec_run: {error}") from error
    _check_same_training(config, dataset, run_config, theirs)
    weight = _item_weight(run_dir.path / "best.pth")
    row_of = {token: row for row, token in enumerate(theirs.field2id_token[theirs.iid_field])}
    wanted = dataset.field2id_token[dataset.iid_field]
    missing = [token for token in wanted if token not in row_of]
    if missing or len(weight) != len(row_of):
        raise UserError(
            f"sasrec_run ({run_dir.path}): has vectors of {len(weight) - 1} items, its dataset "
            f"{len(row_of) - 1}, without {len(missing)} of the {len(wanted) - 1} needed: train "
            "SASRec anew on this dataset"
        )
    return weight[[row_of[token] for token in wanted]]


def _check_same_training(
    config: Config, ours: WholeSequenceDataset, run_config: Config, theirs: WholeSequenceDataset
) -> None:
    """Refuse a run that may have seen what is held out here."""
    named = f"sasrec_run ({config['sasrec_run']})"
    for key in ("split", "group_by", "order"):
        here, there = config["eval_args"][key], run_config["eval_args"][key]
        if here != there:
            raise UserError(f"{named}: its eval_args had {key} {there}, here it is {here}")
    pairs = []
    for part in (ours, theirs):
        tokens = part.field2id_token[part.iid_field][part.inter_feat[part.iid_field].numpy()]
        pairs.append((part.offsets, tokens))
    if not all(np.array_equal(a, b) for a, b in zip(*pairs, strict=True)):
        raise UserError(
            f"{named}: trained on {len(theirs)} interactions of {theirs.dataset_name}, which are "
            f"not the {len(ours)} of {ours.dataset_name} here: train SASRec anew on this dataset"
        )


def _item_weight(path: Path) -> np.ndarray:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        weight = checkpoint["state_dict"]["item_embedding.weight"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"sasrec_run: {path} is no checkpoint of SASRec ({reason})") from error
    return weight.float().numpy()
