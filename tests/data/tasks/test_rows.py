"""Rows of tasks: what stands in them, which an epoch has, and how they share packed rows."""

import numpy as np
import pytest
import torch

from recbole_etegrec.data.sequences import Windows
from recbole_etegrec.data.tasks import TASKS
from recbole_etegrec.data.tasks.batch import Row, pack, task_batches
from recbole_etegrec.data.tasks.loader import TaskLoader
from recbole_etegrec.data.tasks.prompts import read_prompts
from recbole_etegrec.data.tasks.rows import TaskRows, shares
from recbole_etegrec.data.tasks.texts import Vocabulary
from recbole_etegrec.errors import UserError

TITLES = ["", "one", "", "thrée {x}", "four 🎬", "five"]
ITEMS = np.array([1, 2, 3, 4, 5, 5, 1])  # two users: 1 2 3 4 5, and 5 1
WINDOWS = Windows(np.array([0, 5]), np.array([5, 7]), np.array([1, 6]))
END = 7


def letters(texts) -> list[list[int]]:
    """Bytes as tokens."""
    return [[1000 + byte for byte in text.encode()] for text in texts]


def written(slots) -> str:
    """A row in words: texts as they are, codes of items as <item.level>."""
    found = b""
    for slot in slots:
        code = b"<%d.%d>" % divmod(-1 - slot, 2) if slot < 0 else b""
        found += code or (b"#" if slot == END else bytes([slot - 1000]))
    return found.decode()


def made(*names, **more) -> TaskRows:
    options = {"code_length": 2, "history": 3, "most": 40, "budget": 200, "seed": 5, **more}
    prompts = read_prompts("english", list(names))
    texts = {"title": TITLES, "description": ["", "a", "b", "", "", ""]}
    return TaskRows(*prompts, texts, Vocabulary(letters, [], [END]), ITEMS, WINDOWS, **options)


def test_rows_read_as_their_prompts_when_titles_have_any_characters():
    rows = made(*TASKS)
    said = [written(rows.row(n).slots) for n in range(len(rows))]
    assert "The item with the title thrée {x} is<3.0><3.1>" in said
    assert "The item with the description b is<2.0><2.1>" in said
    assert "The item<4.0><4.1> has the title four 🎬#" in said
    assert "After items with the titles one; thrée {x} comes<4.0><4.1>" in said
    assert "After<1.0><1.1><2.0><2.1> comes an item with the title thrée {x}#" in said


@pytest.mark.parametrize("name", TASKS)
def test_lengths_and_what_is_asked_for_are_known_before_a_row_is_made(name):
    rows = made(name)
    for n in range(len(rows)):
        row = rows.row(n)
        assert len(row.slots) == rows.rows.length[n]
        assert row.asked == rows.rows.asked[n] * (2 if TASKS[name].target == "codes" else 1)


def test_items_without_a_text_are_left_out_and_counted(caplog):
    caplog.set_level("INFO")
    assert len(made("title_to_codes", "codes_to_title")) == 8
    assert "task title_to_codes: 4 rows, 1 of 5 items without a text left out" in caplog.text
    assert len(made("codes_to_next_title")) == 4  # item 2 has no title, the others are targets
    histories = made("titles_to_codes")
    assert len(histories) == 5  # each has a title before it
    assert all("<2." not in written(histories.row(n).slots)[:-10] for n in range(5))


def test_history_is_no_longer_than_asked_for_and_texts_neither():
    rows = made("titles_to_codes", history=1, most=3)
    assert {written(rows.row(n).slots) for n in range(len(rows))} == {
        "After items with the titles on comes<2.0><2.1>",
        "After items with the titles th comes<4.0><4.1>",
        "After items with the titles fo comes<5.0><5.1>",
        "After items with the titles fi comes<1.0><1.1>",
    }


def test_epoch_has_each_row_once_when_they_fit_and_another_order_next_time():
    rows = made(*TASKS)
    for steps in (None, 30):
        first, second = rows.draw(0, steps), rows.draw(1, steps)
        if steps is None:
            assert sorted(np.concatenate(first.rows)) == list(range(len(rows)))
            largest = max(int(rows.rows.length[step].sum()) for step in first.rows)
            assert largest <= 200 + 5 * rows.rows.length.max()
        else:
            assert len(first.rows) == 30
        assert list(np.concatenate(first.rows)) != list(np.concatenate(second.rows))
        again = made(*TASKS).draw(0, steps)
        assert all(np.array_equal(a, b) for a, b in zip(first.rows, again.rows, strict=True))


def test_epoch_has_some_rows_when_not_all_fit():
    rows = made(*TASKS)
    drawn = rows.draw(0, 2)
    each = np.bincount(rows.rows.number, weights=rows.rows.length)
    assert shares(each, 400).sum() == pytest.approx(400)
    assert len(set(rows.rows.number[drawn.rows[0]])) == len(TASKS)
    assert len(drawn.rows) == 2
    kept = np.concatenate(drawn.rows)
    assert 0 < len(kept) < len(rows)
    asked = np.bincount(rows.rows.number[kept], weights=rows.rows.asked[kept], minlength=5)
    assert np.allclose(drawn.a_step, np.maximum(asked / 2, 1e-6))


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_micro_batches_have_all_rows_of_a_step_between_them(parts):
    rows = made(*TASKS, budget=400)
    steps = rows.draw(0)
    batches = rows.batches(steps, 0, parts)
    assert len(batches) == parts
    wanted = [rows.row(n) for n in steps.rows[0].tolist()]
    assert sum(len(batch.code_items) + len(batch.text_index) for batch in batches) == sum(
        rows.rows.asked[steps.rows[0]]
    )
    found = []
    for batch in batches:
        assert batch.tokens == sum(len(row.slots) for row in wanted)
        assert (batch.slots.flatten()[batch.item_index] < 0).all()
        begins = torch.nonzero(batch.positions == 0)
        found += [int(batch.slots[a, b]) for a, b in begins.tolist() if batch.slots[a, b]]
    assert len(found) == len(wanted)


def test_packed_rows_hold_what_fits():
    packs = pack([100, 30, 120, 60, 300], 256)
    assert sorted(n for one in packs for n in one) == [0, 1, 2, 3, 4]
    assert packs[0] == [4]
    assert all(sum([100, 30, 120, 60, 300][n] for n in one) <= 256 for one in packs[1:])
    (batch,) = task_batches([Row([5, -1, -2], 2, 0), Row([6, 8], 1, 1)], np.ones(2), 2, 1)
    assert batch.slots.tolist() == [[5, -1, -2, 6, 8]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.code_index.tolist() == [[1, 2]] and batch.text_index.tolist() == [4]
    assert batch.packed


def test_loader_of_tasks_alone_gives_processes_their_shares():
    rows = made(*TASKS)
    loader = TaskLoader(rows)
    loader.draw(3)
    whole = [batch for (batch,) in loader.iterate()]
    assert len(whole) == len(loader) and all(not len(batch.targets) for batch in whole)
    loader.split(2, 2, 1)
    shares = list(loader.iterate(1))
    assert len(shares) == len(whole) - 1 and all(len(step) == 2 for step in shares)
    assert shares[0][0].step_targets == whole[1].step_targets


def test_prompts_are_refused_when_one_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"prompts \(klingon\): must be a file, or one of chinese"):
        read_prompts("klingon", ["title_to_codes"])
    own = tmp_path / "own.yaml"
    own.write_text("between: ','\ntitle_to_codes: 'Which is it?'\n")
    with pytest.raises(UserError, match=r"'title_to_codes' in which \{title\} stands once"):
        read_prompts(str(own), ["title_to_codes"])
    for language in ("english", "chinese"):
        assert read_prompts(language, list(TASKS))[0].keys() == TASKS.keys()


def test_shares_are_equal_but_for_who_needs_less():
    assert shares(np.array([100.0, 10.0, 70.0]), 120).tolist() == [55.0, 10.0, 55.0]
    assert shares(np.array([5.0, 10.0]), 120).tolist() == [5.0, 10.0]
