"""Items that were added to a trained run, as one file beside its ``best/``.

``best/`` itself stays as it is. The file is replaced in one go, so that a run that is loaded has
either the items of before or all of the new ones.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recbole_etegrec.config import Config
from recbole_etegrec.data import WholeSequenceDataset
from recbole_etegrec.decoding import HeadRanker, ranking_of
from recbole_etegrec.errors import UserError
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.storage.atomic import as_readable_as_its_folder, atomic_file
from recbole_etegrec.storage.digests import tensor_digest
from recbole_etegrec.storage.run_directory import RunDirectory

_TENSORS = ("embedding", "content", "codes", "mean", "scale")
_WORDS = ("tokens", "titles", "base", "bonus")
SHOWN_BY = ("new_item_every", "new_item_likeness", "item_score_weight")  # and the ranking


@dataclass
class AddedItems:
    """All items added to a run, in the order of their ids.

    Attributes:
        tokens: ``[n]``.
        titles: titles by token, for items that have one.
        embedding: standardised ``[n, d_z]``.
        content: what is known of them besides ``[n, d_c]``; ``d_c`` is 0 where the run knows none.
        codes: ``[n, L]``.
        mean: the mean that was subtracted from the vectors of the run's own items ``[d_z]``.
        scale: the scale by which they were then divided ``[d_z]``.
        base: digest of the code table without these items.
        bonus: that their scores get by how they are ranked, as :func:`ranked_by` says it, so that
            they are shown as often as they are to be; rankings without a use for one have none.
            None: not found yet.
    """

    tokens: list[str]
    titles: dict[str, str]
    embedding: torch.Tensor
    content: torch.Tensor
    codes: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    base: str
    bonus: dict[str, float] | None = None

    def without(self, tokens: Collection[str]) -> "AddedItems":
        """The others of them."""
        rows = [row for row, token in enumerate(self.tokens) if token not in tokens]
        kept = [self.tokens[row] for row in rows]
        return replace(
            self,
            tokens=kept,
            titles={token: self.titles[token] for token in kept if token in self.titles},
            embedding=self.embedding[rows],
            content=self.content[rows],
            codes=self.codes[rows],
        )


def ranked_by(config: Config) -> str:
    """What decides how often added items are shown, as arguments; alike where values are equal."""
    values = {key: config[key] for key in SHOWN_BY if config[key] is not None}
    numbers = " ".join(f"--{key}={value:g}" for key, value in values.items())
    return f"--ranking={ranking_of(config)} {numbers}"


def read_added_items(directory: RunDirectory) -> AddedItems | None:
    """The items added to a run; None if there are none.

    Raises:
        UserError: the file is damaged.
    """
    path = directory.added_items
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        if metadata.get("digest") != _digest(metadata["items"], tensors):
            raise ValueError("it is not as it was written")
        added = AddedItems(**json.loads(metadata["items"]), **tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _damaged(directory, error) from error
    if not isinstance(added.bonus, dict):
        raise UserError(
            f"run_dir: {path} is of an earlier version: delete it and add the items again"
        )
    return added


def write_added_items(directory: RunDirectory, added: AddedItems) -> None:
    """Write the items added to a run, in place of those written before."""
    path = directory.added_items
    words = json.dumps({name: getattr(added, name) for name in _WORDS})
    tensors = {name: getattr(added, name).cpu().clone() for name in _TENSORS}
    try:
        with atomic_file(path) as fresh:
            save_file(tensors, fresh, metadata={"items": words, "digest": _digest(words, tensors)})
            as_readable_as_its_folder(fresh)
    except (OSError, SafetensorError) as error:
        raise UserError(f"run_dir: {path} cannot be written ({error})") from error


def take_added_items(
    directory: RunDirectory,
    added: AddedItems,
    model: ETEGRecLlama,
    dataset: WholeSequenceDataset,
    ranked: str,
) -> None:
    """Add items to a run's model, and their titles to a dataset that knows their tokens.

    Args:
        ranked: how, as :func:`ranked_by` says it.

    Raises:
        UserError: they were added to another model, or to be ranked otherwise.
    """
    if added.base != model.codes.digest():
        raise UserError(
            f"run_dir: {directory.added_items} has items of another model than {directory.best}: "
            "delete it and add the items again"
        )
    content = added.content if added.content.shape[1] else None
    model.append_items(added.embedding, added.codes, content)
    if added.bonus is not None and isinstance(model.ranker, HeadRanker):
        if ranked not in added.bonus:
            raise UserError(
                f"run_dir: how often the items added to {directory.path} are to be shown is not "
                f"known for {ranked}: give what they were added with, or remove them "
                "(remove-items --all) and add them again so"
            )
        model.ranker.take({"new_item_bonus": added.bonus[ranked]})
    dataset.further_titles.update(added.titles)


def _digest(words: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(f"{words} {tensor_digest(tensors)}".encode()).hexdigest()


def _damaged(directory: RunDirectory, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"run_dir: {directory.added_items} is damaged ({reason}): delete it and add the items again"
    )
