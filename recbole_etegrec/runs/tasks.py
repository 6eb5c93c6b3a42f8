"""Makes the rows of the tasks that a config names: prompts, texts and a decoder's vocabulary."""

import logging
from typing import Any

import numpy as np
from transformers.configuration_utils import PreTrainedConfig

from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.data import WholeSequenceDataset
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.atomic_header import read_header
from recbole_etegrec.data.item_embedding import FROM_INTERACTIONS, embedding_sources
from recbole_etegrec.data.item_file import read_items, read_titles
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.data.tasks import TASKS, tasks_of
from recbole_etegrec.data.tasks.prompts import read_prompts
from recbole_etegrec.data.tasks.rows import TaskRows
from recbole_etegrec.data.tasks.texts import Vocabulary
from recbole_etegrec.errors import UserError
from recbole_etegrec.recommender.base_model import (
    check_length,
    find_base_config,
    load_text_tokenizer,
)

logger = logging.getLogger(__name__)

_BEFORE = "\n"  # of its own tokens, whatever word or single space follows


def give_tasks(config: Config, train_data: SequenceLoader) -> None:
    """Let a loader have the rows of the tasks that a config names, if any.

    Raises:
        UserError: the `.item` file has no texts, the prompts are not whole, or the base model has
            no tokenizer.
    """
    train_data.take_tasks(task_rows(config, train_data._dataset), mixed=config["mixed_tasks"])


def task_rows(config: Config, dataset: WholeSequenceDataset) -> TaskRows | None:
    """The rows of the tasks of a config; None if it names none.

    Args:
        dataset: the training part.

    Raises:
        UserError: see `give_tasks`.
    """
    names = tasks_of(config)
    if not names:
        return None
    texts = item_texts(config, dataset, names)
    held_out = held_out_items(config, dataset.item_num)
    random = items_of_random_codes(config, dataset)
    for column in texts.values():
        for item in (*held_out, *random):
            column[item] = ""
    if len(held_out):
        logger.info("tasks read no text of %d items (task_holdout)", len(held_out))
    if len(random):
        logger.info("tasks read no text of %d items that training does not show", len(random))
    vocabulary = vocabulary_of(config)
    rows = TaskRows(
        *read_prompts(config["prompts"], names),
        texts,
        vocabulary,
        dataset.sequences.items,
        dataset.windows,
        code_length=config["code_length"],
        history=min(config["task_history"], config["MAX_ITEM_LIST_LENGTH"]),
        most=config["task_text_tokens"],
        budget=config["task_tokens"],
        seed=config["seed"],
    )
    if not len(rows):
        raise UserError(f"tasks ({', '.join(names)}): no item has the texts that they need")
    check_length(
        "task_history, task_text_tokens: rows of tasks",
        config["base_model"],
        base_config_of(config),
        int(rows.rows.length.max()),
    )
    return rows


def base_config_of(config: Config) -> PreTrainedConfig:
    """Of the base model of a config, from the shapes that the project has where it has them."""
    return find_base_config(config["base_model"], properties_dir() / "base_model")


def vocabulary_of(config: Config) -> Vocabulary:
    """How the base model of a config writes texts.

    Raises:
        UserError: it has no tokenizer, or one of more tokens than its table has.
    """
    tokenizer = load_text_tokenizer(config["base_model"])
    begin = [t for t in tokenizer("")["input_ids"] if t == tokenizer.bos_token_id]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    base = config["base_model"]
    size = base_config_of(config).vocab_size

    def plain(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    # Some tokenizers begin each text with a space of their own: not in the middle of a row.
    (first,) = plain([_BEFORE])

    def encode(texts: list[str]) -> list[list[int]]:
        both = zip(plain([_BEFORE + text for text in texts]), plain(list(texts)), strict=True)
        found = [
            behind[len(first) :] if behind[: len(first)] == first else alone
            for behind, alone in both
        ]
        if max((max(tokens, default=0) for tokens in [*found, begin, end]), default=0) >= size:
            raise UserError(
                f"base_model ({base}): its tokenizer writes tokens that its table of {size} has "
                "not: bring back the tokenizer that it was trained with"
            )
        return found

    return Vocabulary(encode, begin, end)


def held_out_items(config: Config, n_items: int) -> np.ndarray:
    """The items whose texts no task reads, drawn by the seed; ascending."""
    count = round(config["task_holdout"] * (n_items - 1))
    rng = np.random.default_rng((config["seed"], n_items))
    return np.sort(rng.choice(n_items - 1, count, replace=False) + 1)


def items_of_random_codes(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    """The items whose codes say nothing of them; ascending.

    Their embeddings are of interactions, of which they have none, and nothing predicts them.

    Args:
        dataset: the training part.
    """
    told = config["item_content"] or set(embedding_sources(config)) - set(FROM_INTERACTIONS)
    counts = dataset.sequences.counts(dataset.item_num)
    return np.flatnonzero(counts[1:] == 0) + 1 if not told else np.zeros(0, dtype=np.int64)


def item_texts(
    config: Config, dataset: WholeSequenceDataset, names: list[str]
) -> dict[str, list[str]]:
    """The texts of all items that some tasks need, by field; empty where an item has none.

    Raises:
        UserError: the `.item` file has no such field.
    """
    files = AtomicFiles.of(config)
    needed = {TASKS[name].source for name in names} | {TASKS[name].target for name in names}
    path = files.path("item")
    types = read_header(path, files.separator, files.encoding).types if path.is_file() else {}
    columns: dict[str, dict[str, Any]] = {"title": read_titles(files)}
    if "description" in needed:
        field = config["description_field"]
        if field not in types:
            raise UserError(
                f"description_field ({field}): {path} has no such field (found "
                f"{', '.join(types) or 'nothing'}): name another, or leave out description_to_codes"
            )
        columns["description"] = read_items(files, [field])[field].to_dict()
    if needed & {"title", "titles"} and not columns["title"]:
        raise UserError(
            f"tasks ({', '.join(names)}): {path} must have a field title, or one of words "
            "(token_seq), for titles"
        )
    tokens = dataset.field2id_token[dataset.iid_field]
    return {
        field: ["", *(str(of.get(token, "")).strip() for token in tokens[1:])]
        for field, of in columns.items()
    }
