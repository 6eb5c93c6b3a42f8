"""Pre-split files: the same sequences, histories and metrics as the split made here."""

import logging

import numpy as np
import pytest
import torch
from recbole.data.dataset import SequentialDataset

from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset, create_recbole_dataset
from recbole_etegrec.data.dataset_files import check_dataset_files
from recbole_etegrec.data.sequences import join_rows, make_windows
from recbole_etegrec.errors import UserError
from recbole_etegrec.quick_start import run
from recbole_etegrec.runs.checks import check_rules
from tests.data.test_dataset import rows_of
from tests.helpers import small_config, small_data, small_values, whole_steps

NAMES = ["train", "valid", "test"]
LISTS = {"inter": ["user_id", "item_id_list", "item_id"]}
# Of a file with a row a target: user, history, target; of a plain one: user, item, time.
Row = tuple


def histories_of_users(users: int = 40, items: int = 30, longest: int = 14) -> list[list[int]]:
    rng = np.random.default_rng(1)
    lengths = [3, 4, longest, *rng.integers(3, longest, users - 3)]
    return [rng.integers(0, items, length).tolist() for length in lengths]


def leave_one_out_rows(histories: list[list[int]], at_most: int = 1000) -> list[list[Row]]:
    """Rows of the three files, a prefix each, histories cut to their last items."""
    parts: list[list[Row]] = [[], [], []]
    for user, items in enumerate(histories):
        last = len(items) - 1
        for t in range(1, len(items)):
            part = 2 if t == last else 1 if t == last - 1 and last > 2 else 0
            parts[part].append((user, items[max(t - at_most, 0) : t], items[t]))
    return parts


def write_rows(folder, name: str, parts: list[list[Row]]) -> None:
    (folder / name).mkdir(parents=True)
    for part, rows in zip(NAMES, parts, strict=True):
        lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
        for user, history, item in rows:
            lines.append(f"u{user}\t{' '.join(f'i{i}' for i in history)}\ti{item}")
        (folder / name / f"{name}.{part}.inter").write_text("\n".join(lines) + "\n")


def write_plain(folder, name: str, parts: dict[str, list[Row]]) -> None:
    """Files of user, item and time: `parts` by the end of their names."""
    (folder / name).mkdir(parents=True)
    for part, rows in parts.items():
        lines = ["user_id:token\titem_id:token\ttimestamp:float"]
        lines += [f"u{user}\ti{item}\t{time}" for user, item, time in rows]
        (folder / name / f"{name}{part}.inter").write_text("\n".join(lines) + "\n")


def write_twins(folder, histories: list[list[int]], plain: bool, at_most: int = 1000) -> None:
    """Datasets `whole` and `split` with the same interactions, and ids in the same order."""
    parts = leave_one_out_rows(histories, at_most)
    timed = [[(u, item, len(h)) for u, h, item in rows] for rows in leave_one_out_rows(histories)]
    first = [(user, items[0], 0) for user, items in enumerate(histories)]
    if plain:
        timed[0] += first
        write_plain(folder, "split", {f".{p}": r for p, r in zip(NAMES, timed, strict=True)})
    else:
        write_rows(folder, "split", parts)
        timed.append(first)
    write_plain(folder, "whole", {"": [row for rows in timed for row in rows]})


def split_config(folder, name: str = "split", **more):
    return small_config(str(folder), name, benchmark_filename=NAMES, **more)


@pytest.mark.parametrize("window", [50, 5])
@pytest.mark.parametrize("plain", [False, True])
def test_loaders_give_the_same_batches_when_files_hold_the_leave_one_out_split(
    plain, window, tmp_path
):
    write_twins(tmp_path, histories_of_users(), plain)
    values = {"MAX_ITEM_LIST_LENGTH": window, "max_tokens": 400}
    whole = small_data(small_config(str(tmp_path), "whole", **values))[1]
    config = split_config(tmp_path, **values, load_col=None if plain else LISTS)
    check_dataset_files(config)
    split = small_data(config)[1]
    for epoch in range(2):
        for loader in (whole.train, split.train):
            loader.draw(epoch)
        for one, other in zip(whole_steps(whole.train), whole_steps(split.train), strict=True):
            assert torch.equal(one.items, other.items)
            assert torch.equal(one.target_index, other.target_index)
    for one, other in ((whole.valid, split.valid), (whole.test, split.test)):
        assert len(one._dataset) > 30
        assert rows_of(one._dataset) == rows_of(other._dataset)


@pytest.mark.parametrize("plain", [False, True])
def test_run_ends_with_the_same_metrics_when_files_hold_the_leave_one_out_split(plain, tmp_path):
    write_twins(tmp_path, histories_of_users(), plain)
    results = []
    for name, files in (("whole", None), ("split", NAMES)):
        more = {"exclude_history": True, "benchmark_filename": files}
        values = small_values(str(tmp_path), run_dir=str(tmp_path / f"run_{name}"), **more)
        results.append(run("ETEGRecLlama", name, config_dict=values))
    whole, split = results
    assert whole["best_valid_result"] == split["best_valid_result"]
    assert whole["test_result"] == split["test_result"]
    assert 0 < whole["test_result"]["recall@20"] < 1


def test_held_out_rows_are_recboles_when_it_reads_the_same_files(tmp_path):
    write_twins(tmp_path, histories_of_users(), plain=False)
    config = split_config(tmp_path, load_col=LISTS, alias_of_item_id=["item_id_list"])
    theirs = SequentialDataset(config)
    ours = create_dataset(config)
    assert ours.field2token_id["item_id"] == theirs.field2token_id["item_id"]
    for part, reference in zip(ours.build()[1:], theirs.build()[1:], strict=True):
        assert rows_of(part) == rows_of(reference)


# Rows of any kind ---------------------------------------------------------------------------------


def joined(rows: list[Row]):
    lengths = np.array([len(history) for _, history, _ in rows])
    items = np.array([item for _, history, _ in rows for item in history], dtype=np.int64)
    users, targets = (np.array([row[n] for row in rows]) for n in (0, 2))
    return users, join_rows(users, items, np.cumsum(lengths), lengths, targets)


def rows_in(users, found, windows) -> list[Row]:
    """Of each target of the windows: its user, history and item."""
    return sorted(
        (int(users[found.row[t]]), found.items[start:t].tolist(), int(found.items[t]))
        for start, end, supervised_from in zip(*windows, strict=True)
        for t in range(supervised_from, end)
    )


def rows_of_any_kind(seed: int) -> list[Row]:
    """Nested, truncated, skipping, repeated and unrelated rows, in any order."""
    rng = np.random.default_rng(seed)
    nested, cut = (
        [row for part in leave_one_out_rows(histories_of_users(12, 4), n) for row in part]
        for n in (1000, 3)
    )
    rows = [row for row in nested if row[0] < 8] + [row for row in cut if row[0] >= 6]
    rows = [rows[i] for i in np.flatnonzero(rng.random(len(rows)) < 0.8)] + rows[:3]
    rows += [(u, rng.integers(0, 4, 1 + u % 4).tolist(), u % 3) for u in range(15)]
    return rows if seed == 0 else [rows[i] for i in rng.permutation(len(rows))]


@pytest.mark.parametrize("seed", range(5))
def test_join_rows_gives_each_target_its_own_history_when_rows_are_of_any_kind(seed):
    rows = rows_of_any_kind(seed)
    users, found = joined(rows)
    assert rows_in(users, found, found.windows) == sorted(rows)
    assert found.offsets[0] == 0 and found.offsets[-1] == len(found.items)
    sequence = np.searchsorted(found.offsets, found.windows.start, side="right")
    assert (found.windows.end <= found.offsets[sequence]).all()
    assert (np.diff(users[found.row]) != 0).sum() <= len(found.offsets) - 2
    # Cut to a window, each target keeps the last items of its history.
    windows = make_windows(found.windows, 4, 1)
    expected = sorted((user, history[-4:], item) for user, history, item in rows)
    assert rows_in(users, found, windows) == expected


@pytest.mark.parametrize(("at_most", "windows"), [(1000, 1), (5, 9)])
def test_join_rows_keeps_each_interaction_once_when_rows_overlap(at_most, windows):
    history = list(range(14))
    rows = [row for part in leave_one_out_rows([history], at_most) for row in part]
    _, found = joined(rows)
    assert found.items.tolist() == history
    assert found.offsets.tolist() == [0, 14]
    assert len(found.windows.start) == windows


def test_join_rows_drops_the_target_alone_when_it_has_no_history():
    users, found = joined([(3, [], 7), (3, [7], 8), (4, [], 9)])
    assert rows_in(users, found, make_windows(found.windows, 50, 25)) == [(3, [7], 8)]
    assert found.items.tolist() == [7, 8, 9]


def test_loader_keeps_to_the_rows_when_their_histories_were_cut(tmp_path):
    histories = histories_of_users()
    parts = leave_one_out_rows(histories, at_most=4)
    write_rows(tmp_path, "split", parts)
    dataset, loaders = small_data(split_config(tmp_path, cut_probability=0.0))
    tokens = dataset.field2id_token["item_id"]
    found = []
    for batch in whole_steps(loaders.train):
        width = batch.items.shape[1] - 1
        for at, target in zip(batch.target_index.tolist(), batch.targets.tolist(), strict=True):
            row, place = divmod(at, width)
            history = batch.items[row, : place + 1].tolist()
            found.append(([tokens[i] for i in history], tokens[target]))
    # Histories of a user that were not cut yet still share a window.
    expected = [([f"i{i}" for i in h], f"i{item}") for _, h, item in parts[0]]
    assert sorted(found) == sorted(expected)
    assert len(loaders.train.whole.start) < len(expected)


def test_plain_files_give_no_history_from_later_parts_when_times_overlap(tmp_path):
    train = [(u, item, time) for u in (0, 1) for item, time in ((1, 0), (2, 2), (3, 8))]
    held_out = {".valid": [(0, 4, 4), (1, 5, 1)], ".test": [(0, 6, 9), (1, 7, 3), (2, 8, 0)]}
    write_plain(tmp_path, "split", {".train": train, **held_out})
    parts = create_dataset(split_config(tmp_path)).build()
    items, users = (parts[0].field2id_token[name] for name in ("item_id", "user_id"))
    found = [
        {users[u]: [*(items[i] for i in h), items[t]] for u, (h, _, t) in rows_of(part).items()}
        for part in parts[1:]
    ]
    assert found[0] == {"u0": ["i1", "i2", "i4"], "u1": ["i1", "i5"]}
    assert found[1] == {"u0": ["i1", "i2", "i4", "i3", "i6"], "u1": ["i1", "i5", "i2", "i7"]}


def test_held_out_rows_without_history_are_named_when_left_out(tmp_path, caplog):
    parts = leave_one_out_rows(histories_of_users())
    write_rows(tmp_path, "split", [*parts[:2], [*parts[2], (77, [], 3)]])
    with caplog.at_level(logging.WARNING):
        test = create_dataset(split_config(tmp_path)).build()[2]
    assert len(test) == len(parts[2])
    assert f"test part: 1 of {len(parts[2]) + 1} rows have no history" in caplog.text


@pytest.mark.parametrize("part", [0, 1, 2])
def test_build_refuses_when_a_file_has_no_row_with_a_history(part, tmp_path):
    parts = leave_one_out_rows(histories_of_users())
    parts[part] = [(0, [], 1)]
    write_rows(tmp_path, "split", parts)
    with pytest.raises(UserError, match=f"split.{NAMES[part]}.inter has no row with a history"):
        create_dataset(split_config(tmp_path)).build()


def test_run_trains_recboles_model_when_files_are_pre_split(tmp_path):
    write_twins(tmp_path, histories_of_users(), plain=False)
    values = {"data_path": str(tmp_path), "run_dir": str(tmp_path / "run"), "epochs": 1}
    values |= {"benchmark_filename": NAMES, "load_col": LISTS, "alias_of_item_id": ["item_id_list"]}
    values |= {"show_progress": False, "state": "WARNING", "train_neg_sample_args": None}
    result = run("SASRec", "split", config_dict=values)
    assert 0 < result["test_result"]["recall@20"] < 1


@pytest.mark.parametrize("files", [["train", "test"], [], "train"])
def test_config_refuses_when_benchmark_filename_names_not_three_parts(files, tmp_path):
    with pytest.raises(UserError, match="benchmark_filename .* must be three parts"):
        check_rules(small_config(str(tmp_path), "split", benchmark_filename=files))


def test_files_are_refused_when_they_differ_in_fields(tmp_path):
    write_rows(tmp_path, "split", leave_one_out_rows(histories_of_users()))
    path = tmp_path / "split" / "split.test.inter"
    path.write_text("user_id:token\titem_id:token\nu1\ti1\n")
    with pytest.raises(UserError, match="split.test.inter: missing field 'item_id_list', which"):
        check_dataset_files(split_config(tmp_path))


def test_files_are_refused_when_they_have_neither_histories_nor_times(tmp_path):
    (tmp_path / "split").mkdir()
    for part in NAMES:
        path = tmp_path / "split" / f"split.{part}.inter"
        path.write_text("user_id:token\titem_id:token\nu1\ti1\n")
    with pytest.raises(UserError, match="neither 'item_id_list' .* nor 'timestamp'"):
        create_dataset(split_config(tmp_path))


def test_history_of_a_row_leaves_the_ranking_when_no_earlier_part_has_its_user(tmp_path):
    histories = histories_of_users()
    parts = [[(user, h[:-1], h[-1]) for user, h in enumerate(histories)][k::3] for k in range(3)]
    write_rows(tmp_path, "split", parts)
    loaders = small_data(split_config(tmp_path, exclude_history=True))[1]
    for loader in loaders[1:]:
        for interaction, (rows, items), *_ in loader:
            for row, history in enumerate(interaction["item_id_list"].tolist()):
                target = int(interaction["item_id"][row])
                assert set(items[rows == row].tolist()) == set(history) - {0, target}


def recboles(folder, model: str, **more):
    """RecBole's dataset of pre-split files, and its three parts."""
    values = {"data_path": str(folder), "benchmark_filename": NAMES, "load_col": None, **more}
    dataset = create_recbole_dataset(Config(model, "split", config_dict=values))
    return dataset, dataset.build()


def named_rows(part) -> list[tuple]:
    """User, history and target of each row, as tokens."""
    users, items = (part.field2id_token[field] for field in ("user_id", "item_id"))
    columns = ("user_id", "item_id_list", "item_length", "item_id")
    rows = zip(*(part.inter_feat[field].tolist() for field in columns), strict=True)
    return sorted((users[u], *(items[i] for i in (*h[:n], t))) for u, h, n, t in rows)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("longest", [50, 3])
def test_recboles_models_get_the_interactions_of_the_plugin_when_files_are_pre_split(
    longest, plain, tmp_path
):
    histories = histories_of_users()
    write_twins(tmp_path, histories, plain)
    values = {"MAX_ITEM_LIST_LENGTH": longest}
    theirs, parts = recboles(tmp_path, "SASRec", **values)
    own = create_dataset(split_config(tmp_path, load_col=None, **values))
    assert theirs.field2id_token["item_id"].tolist() == own.field2id_token["item_id"].tolist()
    assert plain or theirs.field2id_token["item_id_list"] is theirs.field2id_token["item_id"]
    rows = leave_one_out_rows(histories, longest)
    for part, expected in zip(parts, rows, strict=True):
        wanted = sorted((f"u{u}", *(f"i{i}" for i in (*h, t))) for u, h, t in expected)
        assert named_rows(part) == wanted
        assert part.inter_feat["item_id_list"].shape[1] == longest
    _, general = recboles(tmp_path, "BPR", **values)
    flat = own.build()[0]
    for field in ("user_id", "item_id"):
        ours = flat.inter_feat[field].tolist()
        assert general[0].inter_feat[field].tolist() == ours
    for part, reference in zip(general[1:], parts[1:], strict=True):
        assert named_rows(part) == named_rows(reference)


def test_recboles_models_know_items_of_histories_that_are_no_target(tmp_path):
    parts = leave_one_out_rows(histories_of_users())
    parts[2] = [(user, [70 + user, *history], item) for user, history, item in parts[2]]
    write_rows(tmp_path, "split", parts)
    for model in ("SASRec", "BPR"):
        dataset, built = recboles(tmp_path, model)
        assert "i70" in dataset.field2token_id["item_id"]
        assert dataset.item_num == 30 + len(parts[2]) + 1
        assert len(named_rows(built[2])) == len(parts[2])


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "SASRec"])
def test_run_trains_recboles_models_when_histories_are_long_and_know_more(model, tmp_path):
    parts = leave_one_out_rows(histories_of_users())
    parts = [[(u, [70 + u, *h], item) for u, h, item in part] for part in parts]
    write_rows(tmp_path, "split", parts)
    values = {"data_path": str(tmp_path), "run_dir": str(tmp_path / "run"), "epochs": 1}
    values |= {"benchmark_filename": NAMES, "load_col": LISTS, "exclude_history": True}
    values |= {"show_progress": False, "state": "WARNING"}
    if model == "SASRec":
        values |= {"MAX_ITEM_LIST_LENGTH": 3, "train_neg_sample_args": None}
    result = run(model, "split", config_dict=values)
    assert 0 < result["test_result"]["recall@20"] <= 1


@pytest.mark.parametrize("filled", ["{} 0 0 0", "0 0 {}"])
def test_files_are_refused_when_zeros_fill_histories_up(filled, tmp_path):
    write_rows(tmp_path, "split", leave_one_out_rows(histories_of_users()))
    path = tmp_path / "split" / "split.valid.inter"
    header, *lines = path.read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    lines = ["\t".join([user, filled.format(h), item]) for user, h, item in cells]
    path.write_text("\n".join([header, *lines]) + "\n")
    config = split_config(tmp_path, load_col=LISTS)
    with pytest.raises(UserError, match=f"valid.inter: {len(lines)} histories are filled up with"):
        check_dataset_files(config)
    path.write_text("\n".join([header, *lines, "u1\ti1 i2\t0"]) + "\n")
    check_dataset_files(config)  # here 0 is an item


def test_plain_files_keep_the_order_of_exact_times_over_parts(tmp_path):
    start = 1_700_000_000_000_000_000  # ns: float64 knows 256 of them apart
    train = [(0, item, start + time) for item, time in ((3, 30), (1, 10), (2, 20))]
    held_out = {".valid": [(0, 4, start + 25)], ".test": [(0, 5, start + 27)]}
    write_plain(tmp_path, "split", {".train": train, **held_out})
    for parts in (create_dataset(split_config(tmp_path)).build(), recboles(tmp_path, "SASRec")[1]):
        assert named_rows(parts[1]) == [("u0", "i1", "i2", "i4")]
        assert named_rows(parts[2]) == [("u0", "i1", "i2", "i4", "i5")]


def test_pre_split_files_are_refused_when_a_model_samples_histories(tmp_path):
    values = {"data_path": str(tmp_path), "benchmark_filename": NAMES}
    with pytest.raises(UserError, match="benchmark_filename: DIEN"):
        check_rules(Config("DIEN", "split", config_dict=values))
