"""Notices tokens that fill histories of pre-split files up to one length, as RecBole's 0 does."""

from collections.abc import Iterator
from pathlib import Path

from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.item_file import read_texts

FILLERS = ("0", "[PAD]", "<pad>", "PAD", "-1")


def find_padding(
    paths: list[Path], files: AtomicFiles, histories: str, separator: str
) -> Iterator[tuple[Path, str]]:
    """Yield files in which histories end or begin with a run of one token, and what is wrong.

    A token that is the target of a line is an item like any other.

    Args:
        paths: of the parts.
        histories: the field of histories.
        separator: of their tokens.
    """
    tables = [read_texts(path, files, [histories, files.item_field]) for path in paths]
    targets = set().union(*(table[files.item_field] for table in tables))
    for token in FILLERS:
        if token in targets:
            continue
        run = f"{token}{separator}{token}"
        for path, table in zip(paths, tables, strict=True):
            texts = table[histories].str.strip(separator)
            filled = (texts == run) | texts.str.endswith(separator + run)
            filled |= texts.str.startswith(run + separator)
            if filled.any():
                yield (
                    path,
                    f"{filled.sum()} histories are filled up with '{token}', which is the target "
                    "of no line, and would be read as an item: take it out of them",
                )
                break
