"""Adds items to a trained run that does not know them: `recbole-etegrec add-items`.

Nothing is trained. New items get vectors in the space of the run's own, codes by its trained
tokenizer, and a place in its code table; no other item's codes change.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data import WholeSequenceDataset
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.dataset_files import check_atomic_file
from recbole_etegrec.data.item_embedding import embedding_sources, standardise
from recbole_etegrec.data.item_embedding.file import vectors_for
from recbole_etegrec.data.item_embedding.text import encode_texts, item_texts, join_fields
from recbole_etegrec.data.item_file import read_rows, read_titles
from recbole_etegrec.errors import UserError
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.runs.added_items import AddedItems, read_added_items, write_added_items
from recbole_etegrec.runs.identity import read_identity, read_vectors
from recbole_etegrec.runs.load import config_of_run, load_run, read_own_config
from recbole_etegrec.runs.trust import config_to_use, offline
from recbole_etegrec.storage.run_directory import RunDirectory

_KNOWN = 50  # known items whose texts are encoded again
_SAME_SPACE = 0.5  # share of them that must still get the first code they have


def add_items(
    run_dir: str,
    items: str,
    embeddings: str | None = None,
    config_dict: dict[str, Any] | None = None,
) -> str:
    """Add the items of a file to a trained run; `load_run` knows them from then on.

    The log-probabilities of the other items stay as they are: they are products over all codes
    of each level, whichever of them stand for items, and nothing is divided among the items there
    are. (`ranking: exact` computes them in other batches, so that last digits may differ.) New
    items take part in every ranking, so metrics measured after this are of a larger catalogue.

    Args:
        items: an atomic `.item` file; its ``title`` becomes the items' title, and its
            ``text_fields`` are read where the run's embeddings are made of text.
        embeddings: vectors of the items in the space that the run's sources give, before it is
            standardised (of several sources, side by side): a file as ``item_embedding_file``
            names one, or a matrix alone with a row for each line of `items`. Needed where the
            run's own source is not text.
        config_dict: overrides keys of the run's config.

    Returns:
        How many there are now, and how much of their codes was known before.

    Raises:
        UserError: a file is missing or damaged, an item is known or named twice, has no text or
            vector, there is no free collision code for it, or another process writes to the run.
    """
    directory = RunDirectory(run_dir)
    read_own_config(directory)
    with directory.held():
        return _add(directory, items, embeddings, config_dict)


def _add(
    directory: RunDirectory,
    items: str,
    embeddings: str | None,
    config_dict: dict[str, Any] | None,
) -> str:
    config = config_of_run(directory, config_to_use(directory, config_dict))
    files = AtomicFiles.of(config)
    tokens = _read_tokens(files, Path(items))
    with offline(when="text_model" not in (config_dict or {})):
        raw = _vectors(config, Path(items), tokens, embeddings)
    config, model, dataset, *_ = load_run(str(directory.path), config_dict)
    _check_new(dataset, tokens, items)
    before = _before(directory, model)
    if embeddings is None:
        _check_texts(config, model, dataset, before)
    embedding = _standardised(model, before, raw)
    codes = _codes(model, embedding, tokens)
    write_added_items(
        directory,
        AddedItems(
            before.tokens + tokens,
            {**before.titles, **read_titles(files, Path(items))},
            torch.cat([before.embedding, embedding.cpu()]),
            torch.cat([before.codes, codes.cpu()]),
            before.mean,
            before.scale,
            before.base,
        ),
    )
    return _summary(directory, model, codes)


def _read_tokens(files: AtomicFiles, path: Path) -> list[str]:
    """The tokens of the new items, in the order of their file."""
    check_atomic_file(path, {files.item_field}, files)
    tokens = read_rows(path, files, []).index
    if (tokens == "").any():
        raise UserError(f"items: {path} has a line without {files.item_field}")
    if tokens.has_duplicates:
        twice = tokens[tokens.duplicated()][0]
        raise UserError(f"items: {path} has '{twice}' more than once: keep one line for each")
    return tokens.tolist()


def _vectors(config: Config, items: Path, tokens: list[str], embeddings: str | None) -> np.ndarray:
    """Vectors of the new items as the run's sources give them ``[n, d_z]``."""
    if embeddings is not None:
        return vectors_for(Path(embeddings), tokens, "embeddings", in_order=True)
    sources = embedding_sources(config)
    if sources != ["text"]:
        why = {"file": "vectors made elsewhere", "text": "text"}
        known = [f"{name} ({why.get(name, 'from interactions')})" for name in sources]
        raise UserError(
            f"item_embedding: the run's vectors are {' and '.join(known)}, which new items do not "
            "come with: give --embeddings=FILE.npy with vectors of the same space and width, or "
            "train a run with item_embedding: text"
        )
    files, fields = AtomicFiles.of(config), config["text_fields"]
    check_atomic_file(items, {files.item_field, *fields}, files)
    texts = join_fields(read_rows(items, files, fields))
    empty = [token for token, text in texts.items() if not text]
    if empty:
        raise UserError(
            f"items: {len(empty)} of {len(texts)} items in {items} have no text in "
            f"{', '.join(fields)}, first '{empty[0]}': write some, or remove them"
        )
    return _encoded(config, list(texts.values()))


def _encoded(config: Config, texts: list[str]) -> np.ndarray:
    return encode_texts(
        texts,
        text_model=config["text_model"],
        device=config["device"],
        show_progress=config["show_progress"],
    )


def _check_new(dataset: WholeSequenceDataset, tokens: list[str], items: str) -> None:
    known = [token for token in tokens if token in dataset.field2token_id[dataset.iid_field]]
    if known:
        raise UserError(
            f"items: {len(known)} of the {len(tokens)} items in {items} are known to the run, "
            f"first '{known[0]}': remove their lines"
        )


def _check_texts(
    config: Config, model: ETEGRecLlama, dataset: WholeSequenceDataset, before: AddedItems
) -> None:
    """Refuse new items whose vectors would not be in the space of the run's own.

    Raises:
        UserError: the run's texts or its model of texts are not those of its training.
    """
    texts = item_texts(dataset, AtomicFiles.of(config), config["text_fields"])
    known = [item for item, text in enumerate(texts, start=1) if text][:_KNOWN]
    if not known:
        return
    raw = _encoded(config, [texts[item - 1] for item in known])
    again = model.tokenizer.encode(_standardised(model, before, raw))[:, 0]
    same = float((again == model.codes.table[known, 0]).float().mean())
    if same < _SAME_SPACE:
        raise UserError(
            f"item_embedding: by their texts {same:.0%} of {len(known)} known items would get the "
            "first code that they have, so texts or text_model are not those that the run was "
            "trained with: bring these back"
        )


def _before(directory: RunDirectory, model: ETEGRecLlama) -> AddedItems:
    """Return the items added before, if any, with the standardisation of the run's own vectors."""
    added = read_added_items(directory)
    if added is not None:
        return added
    vectors = read_vectors(directory, read_identity(directory))
    return AddedItems(
        tokens=[],
        titles={},
        embedding=model.item_embedding[:0].cpu(),
        codes=model.codes.table[:0].cpu(),
        mean=torch.from_numpy(vectors.mean),
        scale=torch.from_numpy(vectors.scale),
        base=model.codes.digest(),
    )


def _standardised(model: ETEGRecLlama, before: AddedItems, raw: np.ndarray) -> torch.Tensor:
    width = len(before.mean)
    if raw.shape[1] != width:
        raise UserError(
            f"embeddings: vectors of width {raw.shape[1]}, those of the run have {width}: make "
            "them as the run's own were made"
        )
    standard = standardise(raw, before.mean.numpy(), before.scale.numpy())
    return torch.from_numpy(standard).to(model.item_embedding)


def _codes(model: ETEGRecLlama, embedding: torch.Tensor, tokens: list[str]) -> torch.Tensor:
    """Codes of new items ``[n, L]``: the nearest, and the first free collision code."""
    codes = model.codes.codes_for(model.tokenizer.encode(embedding))
    full = torch.nonzero(codes[:, -1] >= model.codes.code_num).flatten().tolist()
    if full:
        group = " ".join(map(str, codes[full[0], :-1].tolist()))
        raise UserError(
            f"items: no collision code is free for {len(full)} of them, first '{tokens[full[0]]}': "
            f"all {model.codes.code_num} of the semantic codes {group} are taken; leave them out, "
            "or train a run with them"
        )
    return codes


def _summary(directory: RunDirectory, model: ETEGRecLlama, codes: torch.Tensor) -> str:
    """Say in lines what was added; `model` does not have it yet."""
    count, known = len(codes), model.codes.table[1:]
    lines = [f"{count} items added to {directory.path}: {len(known)} -> {len(known) + count} items"]
    for length in range(1, codes.shape[1]):
        prefixes = set(map(tuple, known[:, :length].tolist()))
        found = sum(tuple(row) in prefixes for row in codes[:, :length].tolist())
        prefix = "first code" if length == 1 else f"first {length} codes"
        lines.append(f"{found} share their {prefix} with an item known before")
    return "\n".join(lines) + "\n"
