"""Item embeddings learned by RecBole's SASRec: trained here, or taken from a finished run of it.

RecBole trains on a row for each prefix of a sequence, padded to the longest history. Its encoder
is causal and counts positions from the start, so here a whole sequence passes it once and each
of its positions predicts the next item: the same function, for a fraction of the work. A fixed
number of epochs needs no validation, so nothing that is held out is ever seen.
"""

import logging
import time
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from recbole.model.abstract_recommender import SequentialRecommender
from safetensors import SafetensorError, safe_open
from tqdm import tqdm, trange

from recbole_etegrec.captured_step import CapturedStep
from recbole_etegrec.config import RECBOLE_PROPERTIES, Config, Loader, find_recbole_model
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.dataset_files import check_dataset_files
from recbole_etegrec.data.item_embedding.cache import cache_path, cached, interactions_digest
from recbole_etegrec.data.item_embedding.cold_items import fill_cold_items
from recbole_etegrec.data.item_embedding.sampled import (
    SparseAndDense,
    read_progress,
    sampled_loss,
    write_progress,
)
from recbole_etegrec.data.loader import SequenceBatch, SequenceLoader
from recbole_etegrec.data.padding import pad_batch
from recbole_etegrec.data.preparation import create_dataset
from recbole_etegrec.data.sequences import Sequences
from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.digests import bytes_digest
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

STEP_ITEMS = 1024
SAMPLED_FROM, SAMPLED_STEP = 100_000, 16_384  # items of a catalogue of which a step has a sample
LEARNING_RATE = 0.001  # RecBole's default, as all that is not named here
LONG = 2  # minutes of training that are told of
_LOOK_AFTER = 20  # steps, after which it is known how long training takes


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
    # As its own `get_attention_mask`, which brings numbers to the device: no graph can hold that.
    seen = (items != 0)[:, None, None].expand(-1, -1, items.shape[1], -1).tril()
    mask = hidden.new_zeros(seen.shape).masked_fill(~seen, -10000.0)
    return sasrec.trm_encoder(hidden, mask, output_all_encoded_layers=False)[-1]


def sasrec_embedding(
    dataset: WholeSequenceDataset,
    *,
    width: int,
    epochs: int,
    max_history: int,
    window_overlap: float,
    seed: int,
    device: torch.device,
    cuda_graphs: bool,
    cache: Path,
    show_progress: bool,
) -> np.ndarray:
    """The item embeddings of a SASRec trained here (ICDM 2018; cross-entropy over all items).

    Args:
        dataset: the training part.
        width: of the embeddings.
        max_history: items of a history at most.
        window_overlap: share of a window that repeats the one before.
        cuda_graphs: whether steps on a GPU are recorded.
        cache: the folder in which the vectors are kept, under a manifest of the training
            interactions and settings.
    """
    architecture = sasrec_settings(width, max_history)
    sampled = dataset.item_num > SAMPLED_FROM
    among, step_items = ("a sample of", SAMPLED_STEP) if sampled else ("all", STEP_ITEMS)
    manifest = {
        "source": f"sasrec: whole sequences, cross-entropy over {among} items, Adam",
        "interactions": interactions_digest(dataset),
        "items": int(dataset.item_num),
        "windows": bytes_digest(np.concatenate(dataset.windows).tobytes()),
        "window_overlap": window_overlap,
        "epochs": epochs,
        "step_items": step_items,
        "learning_rate": LEARNING_RATE,
        "seed": seed,
        **architecture,
    }

    def train() -> np.ndarray:
        """The table of a SASRec that is trained now: [N + 1, width], padding first."""
        loader = SequenceLoader(
            dataset,
            max_tokens=step_items,
            code_length=1,
            training_rows="sequences",
            window_overlap=window_overlap,
            cut_probability=0.0,
            seed=seed,
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            # The names of fields are those that the dataset was made with.
            settings = ChainMap(architecture, dataset.config)
            model = find_recbole_model("SASRec")(settings, dataset).to(device)
            model.item_embedding.sparse = sampled
            step = training_step(model, device, cuda_graphs and not sampled)
            progress = cache_path(cache, manifest).with_suffix(".progress") if sampled else None
            _train(model, loader, epochs, step, show_progress, progress)
        return model.item_embedding.weight.detach().cpu().numpy()

    return _with_cold_items(cached(cache, manifest, train), dataset, seed)


def sasrec_run_embedding(
    dataset: WholeSequenceDataset, run: str, *, eval_args: Mapping[str, Any], seed: int
) -> np.ndarray:
    """The item embeddings of a finished run of RecBole's SASRec.

    Args:
        dataset: the training part.
        run: the directory of the run.
        eval_args: RecBole's key of this name, by which `dataset` was split.

    Raises:
        UserError: the run cannot be read, or has not trained on these interactions.
    """
    return _with_cold_items(_vectors_of_run(dataset, run, eval_args), dataset, seed)


def _with_cold_items(vectors: np.ndarray, dataset: WholeSequenceDataset, seed: int) -> np.ndarray:
    # All that training teaches of an item in no sequence is that it is never the next one.
    items, start, end, users = dataset.sequences
    several = end - start > 1
    pairs = Sequences(items, start[several], end[several], users[several])
    cold = np.flatnonzero(pairs.counts(len(vectors))[1:] == 0) + 1
    vectors[cold] = 0
    fill_cold_items(vectors, cold, np.random.default_rng(seed), "have no neighbour in training")
    return vectors


def sasrec_settings(width: int, max_history: int) -> dict[str, Any]:
    """RecBole's settings of SASRec, at the width of the embeddings."""
    defaults = yaml.load((RECBOLE_PROPERTIES / "model" / "SASRec.yaml").read_text("utf-8"), Loader)
    scaled = {"hidden_size": width, "inner_size": 4 * width, "MAX_ITEM_LIST_LENGTH": max_history}
    return {**defaults, **scaled}


def _train(
    model: SequentialRecommender,
    loader: SequenceLoader,
    epochs: int,
    step: CapturedStep,
    show_progress: bool,
    progress: Path | None,
) -> None:
    """Train a model.

    Args:
        progress: a file that keeps what is done after each epoch, and is deleted in the end.
    """
    on_gpu = step.device.type == "cuda"
    if model.item_embedding.sparse:
        optimizer = SparseAndDense(model, LEARNING_RATE)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=on_gpu or None)
    losses = [] if progress is None else read_progress(progress, model, optimizer)
    bar = trange(epochs, desc="SASRec", initial=len(losses), disable=not show_progress)
    with bar:
        for epoch in range(len(losses), epochs):
            loader.draw(epoch)
            steps = loader if epoch else _with_notice(loader, epochs)
            if progress is not None:
                steps = tqdm(steps, f"epoch {epoch + 1}", len(loader), disable=not show_progress)
            losses.append(train_epoch(model, steps, optimizer, step, loader.max_items))
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
            if progress is not None:
                write_progress(progress, model, optimizer, losses)
    if progress is not None:
        progress.unlink(missing_ok=True)
    logger.info(
        "item embeddings: SASRec, %d epochs, loss %.4f in the first, %.4f in the last",
        epochs,
        losses[0],
        losses[-1],
    )


def _with_notice(loader: SequenceLoader, epochs: int) -> Iterator[list[SequenceBatch]]:
    """The steps of the first epoch; if all epochs take long, one line says so after a few."""
    started = time.perf_counter()
    for number, step in enumerate(loader):
        if number == min(_LOOK_AFTER, len(loader) - 1):
            seconds = (time.perf_counter() - started) / max(number, 1)
            minutes = seconds * len(loader) * epochs / 60
            if minutes > LONG:
                logger.info(
                    "item embeddings: SASRec takes about %.0f minutes here, once for these data; "
                    "item_embedding: collaborative does without it and gives less (Recall@10 on "
                    "Beauty: .0715, with both .0810)",
                    minutes,
                )
        yield step


def training_step(
    model: SequentialRecommender, device: torch.device, cuda_graphs: bool
) -> CapturedStep:
    """The mean loss of the targets of a batch, in nats, and the gradient of each parameter."""
    parameters = list(model.parameters())

    def gradients_of(batch: SequenceBatch, _kind: None) -> tuple[torch.Tensor, list]:
        for parameter in parameters:
            parameter.grad = None
        loss = _loss(model, batch)
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in parameters]

    return CapturedStep(gradients_of, device, on=cuda_graphs)


def _loss(model: SequentialRecommender, batch: SequenceBatch) -> torch.Tensor:
    states = whole_sequence_states(model, batch.items[:, :-1]).flatten(0, 1)  # [B * (T - 1), H]
    if model.item_embedding.sparse:
        return sampled_loss(states[batch.target_index], batch.targets, model.item_embedding)
    table = model.item_embedding.weight.T
    if batch.real_targets is None:
        return F.cross_entropy(states[batch.target_index] @ table, batch.targets)
    losses = F.cross_entropy(states @ table, batch.targets, reduction="none")
    return losses.masked_fill(~batch.real_targets, 0.0).sum() / batch.step_targets


def train_epoch(
    model: SequentialRecommender,
    steps: Iterable[list[SequenceBatch]],
    optimizer: torch.optim.Optimizer | SparseAndDense,
    step: CapturedStep,
    max_items: int,
) -> float:
    """One pass over the training sequences; returns the mean loss of a target, in nats.

    Args:
        max_items: of a batch.
    """
    total, count = torch.zeros((), device=step.device), 0
    for (batch,) in steps:
        few_shapes = pad_batch(batch, max_items, model.n_items) if step.on else batch
        loss, gradients = step(few_shapes)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        total += loss * batch.step_targets
        count += batch.step_targets
    return float(total) / count


def _vectors_of_run(
    dataset: WholeSequenceDataset, run: str, eval_args: Mapping[str, Any]
) -> np.ndarray:
    """The item embeddings of a run of RecBole's SASRec, matched to items by their tokens."""
    run_dir = RunDirectory(run)
    try:
        values = run_dir.read_config()
        if values.get("model") != "SASRec":
            raise UserError(f"{run_dir.path} is a run of {values.get('model')}, not of SASRec")
        values.pop("gpu_id", None)  # of that run, and it would hide devices of this process
        run_config = Config(config_dict=values)
        check_dataset_files(run_config)
        theirs = create_dataset(run_config, of_run=True).build()[0]
    except UserError as error:
        raise UserError(f"sasrec_run: {error}") from error
    named = f"sasrec_run ({run})"
    for key in ("split", "group_by", "order"):
        here, there = eval_args[key], run_config["eval_args"][key]
        if here != there:
            raise UserError(f"{named}: its eval_args had {key} {there}, here it is {here}")
    _check_same_interactions(named, dataset, theirs)
    weight = _item_weight(run_dir.best / "model.safetensors")
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


def _check_same_interactions(
    named: str, ours: WholeSequenceDataset, theirs: WholeSequenceDataset
) -> None:
    """Refuse a run that may have seen what is held out here."""
    pairs = []
    for part in (ours, theirs):
        tokens = part.field2id_token[part.iid_field][part.inter_feat[part.iid_field].numpy()]
        pairs.append((part.sequences.offsets, tokens))
    if not all(np.array_equal(a, b) for a, b in zip(*pairs, strict=True)):
        raise UserError(
            f"{named}: trained on {len(theirs)} interactions of {theirs.dataset_name}, which are "
            f"not the {len(ours)} of {ours.dataset_name} here: train SASRec anew on this dataset"
        )


def _item_weight(path: Path) -> np.ndarray:
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("state.item_embedding.weight").float().numpy()
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"sasrec_run: {path} has no item embeddings ({reason})") from error
