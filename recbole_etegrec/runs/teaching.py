"""What a run learns from: the scores that an ensemble, or a run, gives to training targets.

They are computed once for the targets of a training part, with the history that each has, and stay
in the teacher's directory; a model of any seed that is trained on the same data reads them.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from recbole.data.interaction import Interaction

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.data.identity import Identity
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.data.sequences import Windows, make_prefixes, pad_runs
from recbole_etegrec.data.teacher import Teacher, new_tables
from recbole_etegrec.decoding import Ask, EnsembleRanker, Ranking
from recbole_etegrec.errors import UserError
from recbole_etegrec.model.protocol import RankingModel
from recbole_etegrec.recommender import autocast
from recbole_etegrec.runs.ensemble import check_same_data
from recbole_etegrec.runs.identity import read_identity
from recbole_etegrec.runs.load import load_run
from recbole_etegrec.storage.atomic import atomic_directory
from recbole_etegrec.storage.digests import file_digest
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

FOLDER = "taught"
_SUMS = "checksums.json"  # by which the model of a run is known
_ROWS = 2**17  # that are ranked in turn by the members of an ensemble


def check_teacher(config: Config) -> None:
    """Look whether the teacher that a config names can be one, before any data are read.

    Raises:
        UserError: it is no finished run of the plugin, or items were added to it.
    """
    if not config["distill_from"]:
        return
    directory = RunDirectory(config["distill_from"])
    ours = is_ours(directory.read_config())
    if not ours or not directory.result.exists() or not (directory.best / _SUMS).is_file():
        raise UserError(
            f"distill_from ({directory.path}): must be an ensemble, or a finished run of one of "
            "the plugin's models"
        )
    if directory.added_items.exists():
        raise UserError(
            f"distill_from ({directory.path}): items were added to it, which this run does not "
            "know: take them out with remove-items --all, or name a run without them"
        )


def give_teacher(config: Config, train_data: SequenceLoader, identity: Identity) -> None:
    """Let a loader have the teacher that a config names, if any.

    Its scores are computed where they are not there yet.

    Args:
        identity: of the data that is trained on.

    Raises:
        UserError: it cannot be one, is of other data, or its directory cannot be written.
    """
    check_teacher(config)
    if not config["distill_from"]:
        return
    directory = RunDirectory(config["distill_from"])

    def ask(items: np.ndarray, sequences: Windows) -> Teacher:
        targets = make_prefixes(sequences, config["MAX_ITEM_LIST_LENGTH"])
        order = np.argsort(targets.supervised_from, kind="stable")
        targets = Windows(*(column[order] for column in targets))
        model, k = file_digest(directory.best / _SUMS), config["distill_candidates"]
        told = [model, k, *identity.tokens.values()]
        digest = hashlib.sha256(json.dumps(told, default=str).encode())
        for array in (items, *targets):
            digest.update(np.ascontiguousarray(array).tobytes())
        folder = directory.path / FOLDER / digest.hexdigest()[:16]
        if not folder.is_dir():
            _ask_once(config, folder, targets, items, identity)
        return Teacher(folder, targets.supervised_from)

    train_data.take_teacher(ask, ends=config["distill_ends"])


def _ask_once(
    config: Config, folder: Path, targets: Windows, items: np.ndarray, identity: Identity
) -> None:
    """Have a teacher answer; of several runs at a time one asks, and the others wait."""
    lock = folder.with_suffix(".lock")
    try:
        folder.parent.mkdir(exist_ok=True)
        with FileLock(lock):
            if not folder.is_dir():
                with atomic_directory(folder) as fresh:
                    _teach(config, fresh, targets, items, identity)
    except OSError as error:
        raise UserError(
            f"distill_from: {folder} cannot be written ({error.strerror or error})"
        ) from error
    finally:
        with suppress(OSError):
            lock.unlink()


def _teach(
    config: Config, folder: Path, targets: Windows, items: np.ndarray, identity: Identity
) -> None:
    """Fill the files of a teacher."""
    path, k = config["distill_from"], config["distill_candidates"]
    values = {"data_path": config.inputs["data_path"], "use_gpu": config["use_gpu"]}
    own, model, *_ = load_run(path, values)
    check_same_data(path, own, read_identity(RunDirectory(path)), config, identity, "this run")
    k = min(k, model.n_items - 1)
    tables, mass = new_tables(folder, len(targets.start), k), model.ranker.mass
    logger.info("%s is asked for %d targets, once", path, len(targets.start))
    # Rows of about one length share a batch, and hold less padding.
    order = np.argsort(targets.end - targets.start, kind="stable")
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        size = own["eval_batch_size"]
        parts = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        asks = [Ask(_histories(model, targets, items, part), None) for part in parts]
        for part, found in zip(parts, _ranked(model, asks, k), strict=True):
            width = found.items.shape[1]
            tables.items[part, :width], tables.items[part, width:] = found.items, 0
            tables.scores[part, :width], tables.scores[part, width:] = found.scores / mass, -np.inf
    for table in tables:
        table.flush()


def _histories(
    model: RankingModel, targets: Windows, items: np.ndarray, rows: np.ndarray
) -> Interaction:
    """The histories before some targets, as the teacher takes them."""
    ends = targets.supervised_from[rows]
    lengths = np.minimum(ends - targets.start[rows], model.max_history)
    history = pad_runs(items, ends, lengths, lengths.max())
    values = torch.from_numpy(history), torch.from_numpy(lengths)
    return Interaction(dict(zip((model.fields.history, model.fields.length), values, strict=True)))


@torch.no_grad()
def _ranked(model: RankingModel, asks: list[Ask], k: int) -> Iterator[Ranking]:
    """The teacher's best items of each batch, on the CPU."""
    if isinstance(model.ranker, EnsembleRanker):
        weights = model.ranker.weights
        yield from (scored.best(weights, k) for scored in model.ranker.in_turn(asks, k))
        return
    for ask in asks:
        with autocast(model.precision, model.device.type):
            found = model.ranker.best(ask.interaction.to(model.device), k)
        yield Ranking(*(values.float().cpu() for values in found._replace(items=found.items)))
