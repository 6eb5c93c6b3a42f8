"""What several test files share: a small dataset with structure, and quiet, repeatable torch."""

import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# One thread: repeatable, and many small steps do not wait for each other on a busy machine.
torch.set_num_threads(1)

USERS, ITEMS = 60, 40
HEADER = "user_id:token\titem_id:token\ttimestamp:float"


def write_interactions(folder: Path, name: str, histories: list[list[int]]) -> None:
    """Write ``folder/name/name.inter``; item ids and times are a user's history and its order."""
    (folder / name).mkdir(parents=True)
    lines = [HEADER]
    for user, items in enumerate(histories):
        lines += [f"u{user}\ti{item}\t{time}" for time, item in enumerate(items)]
    (folder / name / f"{name}.inter").write_text("\n".join(lines) + "\n")


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Leave the level of the root logger, which each run sets, as it was."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data_path with the dataset `tiny`: 60 users of 3 to 70 interactions with 40 items.

    Users walk around a circle of items, mostly by one step, so the next item can be learned.
    The longest history exceeds a window of 50 items.
    """
    folder = tmp_path_factory.mktemp("data")
    chance = random.Random(7)
    histories = []
    for user in range(USERS):
        length = (3, 4, 70)[user] if user < 3 else chance.randint(5, 20)
        item, history = chance.randrange(ITEMS), []
        for _ in range(length):
            history.append(item)
            item = (item + (1 if chance.random() < 0.8 else chance.randint(2, 4))) % ITEMS
        histories.append(history)
    write_interactions(folder, "tiny", histories)
    return str(folder)


@pytest.fixture(scope="session")
def texts_data(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`tiny` with titles of odd characters, each fifth item without, and some descriptions."""
    folder = tmp_path_factory.mktemp("texts")
    shutil.copytree(Path(tiny_data, "tiny"), folder / "tiny")
    lines = ["item_id:token\ttitle:token_seq\tdescription:token_seq"]
    for n in range(ITEMS):
        title = f"«{n}» ½ 🎬 <end>" if n % 5 else ""
        lines.append(f"i{n}\t{title}\t{f'number {n}' if n % 3 == 0 else ''}")
    (folder / "tiny" / "tiny.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)
