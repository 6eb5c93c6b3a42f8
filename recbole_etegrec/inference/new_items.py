"""Adds items to a trained run that does not know them, and removes them again.

Nothing is trained. New items get vectors in the space of the run's own, codes by its trained
tokenizer, and a place in its code table; no other item's codes change.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data import ItemContent, ItemVectors, WholeSequenceDataset, width_of
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.dataset_files import check_atomic_file
from recbole_etegrec.data.item_embedding import embedding_sources, standardise
from recbole_etegrec.data.item_embedding.content import read_content
from recbole_etegrec.data.item_embedding.file import vectors_for
from recbole_etegrec.data.item_embedding.predicted import predict
from recbole_etegrec.data.item_embedding.text import (
    encode_texts,
    item_texts,
    join_fields,
    word_fields,
)
from recbole_etegrec.data.item_file import read_rows, read_titles
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.exposure import find_exposure
from recbole_etegrec.inference.proposed_codes import proposed_codes
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.runs.added_items import (
    SHOWN_BY,
    AddedItems,
    ranked_by,
    read_added_items,
    write_added_items,
)
from recbole_etegrec.runs.identity import read_identity, read_vectors
from recbole_etegrec.runs.load import load_run, read_own_config
from recbole_etegrec.runs.parts import config_of_run
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
            names one, or a matrix alone with a row for each line of `items`. Without it they are
            encoded where the run's own source is text, else predicted from ``item_content``.
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


def remove_items(
    run_dir: str, items: str | None = None, config_dict: dict[str, Any] | None = None
) -> str:
    """Remove items that `add_items` has added; those that a run was trained on stay.

    Args:
        items: an atomic `.item` file that names them; None: all that were added.
        config_dict: overrides keys of the run's config.

    Returns:
        How many there are now.

    Raises:
        UserError: a file is missing or damaged, an item was not added, or another process writes
            to the run.
    """
    directory = RunDirectory(run_dir)
    read_own_config(directory)
    with directory.held():
        added = read_added_items(directory)
        if added is None:
            raise UserError(f"run_dir {directory.path}: no items were added to it")
        config = config_of_run(directory, config_to_use(directory, config_dict))
        files = AtomicFiles.of(config)
        tokens = added.tokens if items is None else _read_tokens(files, Path(items))
        known = set(added.tokens)
        strange = [token for token in tokens if token not in known]
        if strange:
            raise UserError(
                f"items: {len(strange)} of the {len(tokens)} items in {items} were not added to "
                f"the run, first '{strange[0]}': remove their lines"
            )
        kept = added.without(set(tokens))
        exposure = _keep(directory, kept, config_dict)
        lines = [f"{len(tokens)} items removed from {directory.path}, {len(kept.tokens)} stay"]
        return "\n".join([*lines, *exposure]) + "\n"


def _add(
    directory: RunDirectory,
    items: str,
    embeddings: str | None,
    config_dict: dict[str, Any] | None,
) -> str:
    config = config_of_run(directory, config_to_use(directory, config_dict))
    files = AtomicFiles.of(config)
    tokens = _read_tokens(files, Path(items))
    vectors = read_vectors(directory, read_identity(directory))
    with offline(when="text_model" not in (config_dict or {})):
        content = _content(config, vectors.content, Path(items), tokens)
        raw = _vectors(config, Path(items), tokens, embeddings, content)
    config, model, dataset, *_ = load_run(str(directory.path), config_dict)
    _check_new(dataset, tokens, items)
    proposed = None
    if config["new_item_codes"] == "title":
        with offline(when="base_model" not in (config_dict or {})):
            proposed = _proposed(config, model, Path(items), tokens)
    before = _before(directory, model, vectors)
    if raw is None and not content.shape[1]:
        embedding = _standing_by(model, proposed)
    elif raw is None:
        known = vectors.embedding[1:]
        embedding = predict(vectors.content.vectors[1:], known, content)
        embedding = torch.from_numpy(embedding).to(model.item_embedding)
    else:
        embedding = _standardised(model, before, raw)
        if embeddings is None:
            _check_texts(config, model, dataset, before)
    codes = _codes(model, embedding, tokens, proposed)
    summary = _summary(directory, model, codes)
    added = AddedItems(
        tokens=before.tokens + tokens,
        titles={**before.titles, **read_titles(files, Path(items))},
        embedding=torch.cat([before.embedding, embedding.cpu()]),
        content=torch.cat([before.content, torch.from_numpy(content)]),
        codes=torch.cat([before.codes, codes.cpu()]),
        mean=before.mean,
        scale=before.scale,
        base=before.base,
    )
    return "\n".join([*summary, *_keep(directory, added, config_dict)]) + "\n"


def _keep(
    directory: RunDirectory, added: AddedItems, config_dict: dict[str, Any] | None
) -> list[str]:
    """Write the items added to a run, with the bonus that they are to have; says what it does.

    One is found for what the keys ask for, and one for the run as it is.
    """
    if not added.tokens:
        directory.added_items.unlink(missing_ok=True)
        return []
    added, bonus, lines = replace(added, bonus=None), {}, []
    asked = config_dict or {}
    own = {key: asked[key] for key in asked if key not in ("ranking", *SHOWN_BY)}
    for values in [asked] if own == asked else [asked, own]:
        config, model, _, *loaders = load_run(str(directory.path), values, added)
        exposure = find_exposure(config, model, loaders)
        if exposure:
            bonus[ranked_by(config)] = exposure.bonus
            lines.append(str(exposure))
    write_added_items(directory, replace(added, bonus=bonus))
    return lines


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


def _content(
    config: Config, known: ItemContent | None, items: Path, tokens: list[str]
) -> np.ndarray:
    """What is known of the new items besides ``[n, d_c]``; ``d_c`` is 0 where the run knows none.

    Raises:
        UserError: the file has not the fields of the run, or nothing of an item.
    """
    if known is None:
        return np.zeros((len(tokens), 0), dtype=np.float32)
    files = AtomicFiles.of(config)
    fields = known.fields
    check_atomic_file(items, {files.item_field, *fields}, files)
    table = read_rows(items, files, fields)
    _refuse_empty(items, {token: "".join(row) for token, *row in table.itertuples()}, fields)
    return read_content(config, known, table)


def _vectors(
    config: Config, items: Path, tokens: list[str], embeddings: str | None, content: np.ndarray
) -> np.ndarray | None:
    """Vectors of the new items as the run's sources give them ``[n, d_z]``.

    None where they are to be predicted from their content.
    """
    if embeddings is not None:
        return vectors_for(Path(embeddings), tokens, "embeddings", in_order=True)
    sources = embedding_sources(config)
    if sources != ["text"]:
        if content.shape[1] or config["new_item_codes"] == "title":
            return None
        why = {"file": "vectors made elsewhere", "text": "text"}
        known = [f"{name} ({why.get(name, 'from interactions')})" for name in sources]
        raise UserError(
            f"item_embedding: the run's vectors are {' and '.join(known)}, which new items do not "
            "come with: give --embeddings=FILE.npy with vectors of the same space and width, or "
            "train a run with item_head: True and item_content: fields, or with the task "
            "title_to_codes for new_item_codes: title"
        )
    files = AtomicFiles.of(config)
    fields = config["text_fields"] or word_fields(files)
    check_atomic_file(items, {files.item_field, *fields}, files)
    texts = join_fields(read_rows(items, files, fields))
    _refuse_empty(items, texts, fields)
    return _encoded(config, list(texts.values()))


def _refuse_empty(items: Path, texts: dict[str, str], fields: list[str]) -> None:
    """Refuse items of which nothing is known.

    Raises:
        UserError: an item has no text.
    """
    empty = [token for token, text in texts.items() if not text.strip()]
    if empty:
        raise UserError(
            f"items: {len(empty)} of {len(texts)} items in {items} have no text in "
            f"{', '.join(fields)}, first '{empty[0]}': write some, or remove them"
        )


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
    files = AtomicFiles.of(config)
    texts = item_texts(dataset, files, config["text_fields"] or word_fields(files))
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


def _before(directory: RunDirectory, model: ETEGRecLlama, vectors: ItemVectors) -> AddedItems:
    """Return the items added before, if any, with the standardisation of the run's own vectors."""
    added = read_added_items(directory)
    if added is not None:
        return added
    return AddedItems(
        tokens=[],
        titles={},
        embedding=model.item_embedding[:0].cpu(),
        content=torch.zeros(0, width_of(vectors.content)),
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


def _proposed(config: Config, model: ETEGRecLlama, items: Path, tokens: list[str]) -> torch.Tensor:
    """What the titles of new items say of their semantic codes ``[n, K, L - 1]``.

    Raises:
        UserError: an item has no title, or the run did not learn what titles say.
    """
    titles = read_titles(AtomicFiles.of(config), items)
    texts = {token: titles.get(token, "") for token in tokens}
    _refuse_empty(items, texts, ["title"])
    return proposed_codes(config, model, list(texts.values()))


@torch.no_grad()
def _standing_by(model: ETEGRecLlama, proposed: torch.Tensor) -> torch.Tensor:
    """Embeddings ``[n, d_z]`` that the tokenizer gives to the likeliest proposed codes."""
    tokenizer = model.tokenizer
    return tokenizer.decoder(tokenizer.quantizer.look_up(proposed[:, 0]))


def _codes(
    model: ETEGRecLlama,
    embedding: torch.Tensor,
    tokens: list[str],
    proposed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Codes of new items ``[n, L]``: the nearest, and the first free collision code.

    Items for which none is free get the next nearest of the last level's codes that have room.

    Args:
        proposed: semantic codes that are taken instead, the first that have room
            ``[n, K, L - 1]``; the nearest follow where none of them has.
    """
    semantic, most = model.tokenizer.encode(embedding), model.codes.code_num
    if proposed is not None:
        semantic = _with_room(model, semantic, proposed)
    tried = torch.zeros_like(semantic[:, -1])  # of the last level's codes, the nearest first
    while True:
        codes = model.codes.codes_for(semantic)
        full = (codes[:, -1] >= most).nonzero().squeeze(1)
        if not len(full):
            return codes
        tried[full] += 1
        none = full[tried[full] >= most]
        if len(none):
            first = int(none[0])
            group = " ".join(map(str, codes[first, :-2].tolist()))
            raise UserError(
                f"items: no code is free for {len(none)} of them, first '{tokens[first]}': all "
                f"that begin with {group} are taken; leave them out, or train a run with them"
            )
        nearest = model.tokenizer.last_distances(embedding[full]).argsort(dim=1, stable=True)
        semantic[full, -1] = nearest.gather(1, tried[full].unsqueeze(1)).squeeze(1)


def _with_room(model: ETEGRecLlama, nearest: torch.Tensor, proposed: torch.Tensor) -> torch.Tensor:
    """The first semantic codes ``[n, L - 1]`` of those proposed that have room, else the nearest.

    Args:
        nearest: ``[n, L - 1]``.
        proposed: ``[n, K, L - 1]``.
    """
    choices = torch.cat([proposed, nearest.unsqueeze(1)], dim=1)
    rows = torch.arange(len(choices), device=choices.device)
    place = torch.zeros_like(rows)
    while True:
        semantic = choices[rows, place]
        full = model.codes.codes_for(semantic)[:, -1] >= model.codes.code_num
        full = full & (place < proposed.shape[1])
        if not full.any():
            return semantic
        place = place + full


def _summary(directory: RunDirectory, model: ETEGRecLlama, codes: torch.Tensor) -> list[str]:
    """Say in lines what was added; `model` does not have it yet."""
    count, known = len(codes), model.codes.table[1:]
    lines = [f"{count} items added to {directory.path}: {len(known)} -> {len(known) + count} items"]
    for length in range(1, codes.shape[1]):
        prefixes = set(map(tuple, known[:, :length].tolist()))
        found = sum(tuple(row) in prefixes for row in codes[:, :length].tolist())
        prefix = "first code" if length == 1 else f"first {length} codes"
        lines.append(f"{found} share their {prefix} with an item known before")
    return lines
