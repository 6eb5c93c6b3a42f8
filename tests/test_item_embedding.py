"""Item embeddings: from training interactions alone, cached by what they are made of."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recbole_etegrec.data import create_dataset, load_item_embedding
from recbole_etegrec.data.item_embedding import cooccurrence, ppmi_svd
from recbole_etegrec.errors import UserError
from tests.conftest import write_interactions
from tests.helpers import small_config, small_data


def embedding_of(data_path: str, dataset: str = "tiny", **more) -> np.ndarray:
    config = small_config(data_path, dataset, **more)
    return load_item_embedding(config, small_data(config)[1].train._dataset)


def random_histories() -> list[list[int]]:
    """The first user meets all items in training, so that ids do not depend on the others."""
    rng = np.random.default_rng(0)
    others = [rng.integers(0, 20, rng.integers(4, 15)).tolist() for _ in range(30)]
    return [[*range(20), 0, 1], *others]


def test_embedding_is_the_same_when_held_out_items_are_altered(tmp_path):
    histories = random_histories()
    altered = [[*items[:-2], (items[-2] + 7) % 20, (items[-1] + 3) % 20] for items in histories]
    in_training = [[*items[:-3], (items[-3] + 7) % 20, *items[-2:]] for items in histories[1:]]
    found = {}
    for name, version in (
        ("plain", histories),
        ("altered", altered),
        ("in_training", [histories[0], *in_training]),
    ):
        write_interactions(tmp_path, name, version)
        cache = str(tmp_path / f"cache-{name}")
        found[name] = embedding_of(str(tmp_path), name, embedding_cache=cache)
    tokens = [
        create_dataset(small_config(str(tmp_path), name)).field2id_token["item_id"].tolist()
        for name in found
    ]
    assert tokens[0] == tokens[1] == tokens[2]
    assert np.array_equal(found["plain"], found["altered"])
    assert not np.array_equal(found["plain"], found["in_training"])


def test_embedding_is_centred_and_scaled_when_made(tiny_data):
    found = embedding_of(tiny_data)
    assert found.dtype == np.float32
    assert found.shape == (41, 10)
    assert not found[0].any()
    assert np.abs(found[1:].mean(axis=0)).max() < 1e-5
    assert np.mean(found[1:] ** 2) == pytest.approx(1, abs=1e-5)
    assert len(np.unique(found[1:], axis=0)) == 40


def test_embedding_puts_neighbours_close_when_users_walk_a_circle(tiny_data):
    found = embedding_of(tiny_data)
    names = create_dataset(small_config(tiny_data)).field2id_token["item_id"]
    place = {name: row for row, name in enumerate(names)}
    circle = found[[place[f"i{n}"] for n in range(40)]]
    circle /= np.linalg.norm(circle, axis=1, keepdims=True)
    cosine = circle @ circle.T
    near = np.mean([cosine[n, (n + 1) % 40] for n in range(40)])
    far = np.mean([cosine[n, (n + 20) % 40] for n in range(40)])
    assert near > far + 0.3


def test_embedding_gives_distinct_finite_rows_when_items_never_co_occur(tmp_path):
    # The last two items of a user are held out: items 10 to 19 are in no training part.
    histories = [[u % 10, (u + 1) % 10, (u + 2) % 10, 10 + u % 10, 10 + u % 7] for u in range(20)]
    write_interactions(tmp_path, "cold", histories)
    found = embedding_of(str(tmp_path), "cold")
    assert np.isfinite(found).all()
    assert len(np.unique(found, axis=0)) == len(found)


@pytest.mark.parametrize("window", [1, 3])
def test_cooccurrence_equals_a_loop_when_sequences_are_random(window):
    rng = np.random.default_rng(0)
    items = rng.integers(1, 9, 60)
    offsets = np.array([0, 1, 20, 22, 60])
    expected = np.zeros((9, 9))
    for begin, end in zip(offsets[:-1], offsets[1:], strict=True):
        for i in range(begin, end):
            for j in range(begin, end):
                if i != j and abs(i - j) <= window and items[i] != items[j]:
                    expected[items[i], items[j]] += 1 / abs(i - j)
    found = cooccurrence(items, offsets, 9, window).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_ppmi_svd_gives_the_tables_angles_when_the_rank_suffices():
    rng = np.random.default_rng(0)
    items, offsets = rng.integers(1, 12, 200), np.array([0, 90, 200])
    counts = cooccurrence(items, offsets, 12, 2)
    dense = counts.toarray()
    totals = dense.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ppmi = np.log(dense * totals.sum() / np.outer(totals, totals))
    ppmi = np.where(ppmi > 0, ppmi, 0)
    found = ppmi_svd(counts, 40, np.random.default_rng(1))
    assert found.shape == (12, 40)
    assert not found[0].any()  # without a count
    u, s, _ = np.linalg.svd(ppmi)
    expected = (u[:, :10] * s[:10]) @ u[:, :10].T
    length = np.sqrt(np.diag(expected)[1:])
    expected = expected[1:, 1:] / np.outer(length, length)  # rows come at unit length
    np.testing.assert_allclose(found[1:] @ found[1:].T, expected, atol=1e-8)


def cache_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_cache_gives_the_same_array_when_hit(tiny_data, tmp_path):
    first = embedding_of(tiny_data, embedding_cache=str(tmp_path))
    (path,) = cache_files(tmp_path)
    assert path.suffix == ".safetensors"
    assert np.array_equal(embedding_of(tiny_data, embedding_cache=str(tmp_path)), first)
    # What is in the file is what is used: turned round, it comes back turned round.
    save_file({"embedding": load_file(path)["embedding"][:, ::-1].copy()}, path)
    again = embedding_of(tiny_data, embedding_cache=str(tmp_path))
    np.testing.assert_allclose(again, first[:, ::-1], atol=1e-6)
    assert cache_files(tmp_path) == [path]


def test_cache_is_not_hit_when_data_or_keys_differ(tiny_data, tmp_path):
    write_interactions(tmp_path / "data", "other", random_histories())
    cache = {"embedding_cache": str(tmp_path / "cache")}
    embedding_of(tiny_data, **cache)
    different = [
        embedding_of(str(tmp_path / "data"), "other", **cache),
        embedding_of(tiny_data, semantic_hidden_size=9, **cache),
        embedding_of(tiny_data, cooccurrence_window=2, **cache),
        embedding_of(tiny_data, seed=1, **cache),
    ]
    assert len(cache_files(tmp_path / "cache")) == 1 + len(different)
    assert different[0].shape == (21, 10)
    assert different[1].shape == (41, 9)


def vectors_of(tokens: list[str]) -> np.ndarray:
    """A vector that tells which item it belongs to."""
    numbers = np.array([float(token[1:]) for token in tokens])
    return np.stack([numbers, numbers**2, np.sin(numbers)], axis=1).astype(np.float32)


def write_vectors(folder: Path, kind: str, tokens: list[str], rows: np.ndarray) -> str:
    path = folder / f"vectors.{kind}"
    if kind == "npy":
        np.save(path, rows)
        path.with_suffix(".items").write_text("".join(f"{token}\n" for token in tokens))
    else:
        lines = ["itm_id:token\titm_emb:float_seq"]
        for token, row in zip(tokens, rows.tolist(), strict=True):
            lines.append(f"{token}\t{' '.join(map(repr, row))}")
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def from_file(data_path: str, file: str) -> np.ndarray:
    return embedding_of(data_path, item_embedding="file", item_embedding_file=file)


KINDS = pytest.mark.parametrize("kind", ["npy", "itememb"])


@KINDS
def test_file_gives_rows_in_recboles_order_when_its_own_differs(kind, tiny_data, tmp_path):
    # Shuffled, and with items that the dataset does not have.
    tokens = [f"i{n}" for n in np.random.default_rng(0).permutation(55)]
    file = write_vectors(tmp_path, kind, tokens, vectors_of(tokens))
    found = from_file(tiny_data, file)
    names = create_dataset(small_config(tiny_data)).field2id_token["item_id"][1:].tolist()
    assert names != sorted(names, key=lambda name: int(name[1:]))
    expected = vectors_of(names)
    expected = expected - expected.mean(axis=0)
    expected /= np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)
    assert not found[0].any()


@KINDS
def test_file_is_refused_with_count_and_names_when_items_are_missing(kind, tiny_data, tmp_path):
    tokens = [f"i{n}" for n in range(33)]
    file = write_vectors(tmp_path, kind, tokens, vectors_of(tokens))
    names = create_dataset(small_config(tiny_data)).field2id_token["item_id"][1:]
    missing = [name for name in names if int(name[1:]) >= 33]
    with pytest.raises(UserError) as error:
        from_file(tiny_data, file)
    message = str(error.value)
    assert f"misses 7 of 40 items, first {', '.join(missing[:5])}:" in message
    assert missing[5] not in message


@KINDS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_file_is_refused_when_a_value_is_not_finite(kind, value, tiny_data, tmp_path):
    tokens = [f"i{n}" for n in range(40)]
    rows = vectors_of(tokens)
    rows[[7, 9], 1] = value
    file = write_vectors(tmp_path, kind, tokens, rows)
    with pytest.raises(UserError, match="2 rows with NaN or infinity, first for item 'i7'"):
        from_file(tiny_data, file)


def test_file_is_refused_when_rows_and_tokens_differ_in_number(tiny_data, tmp_path):
    tokens = [f"i{n}" for n in range(40)]
    file = write_vectors(tmp_path, "npy", tokens, vectors_of(tokens)[:39])
    with pytest.raises(
        UserError, match=r"shape \(39, 3\) of float32, .*vectors.items has 40 lines"
    ):
        from_file(tiny_data, file)


@pytest.mark.parametrize("rows", [np.zeros(40), np.zeros((40, 2, 2))])
def test_file_is_refused_when_it_is_no_matrix(rows, tiny_data, tmp_path):
    file = write_vectors(tmp_path, "npy", [f"i{n}" for n in range(40)], rows)
    with pytest.raises(UserError, match="need a row of numbers for each line"):
        from_file(tiny_data, file)


def test_file_is_refused_when_the_tokens_are_missing(tiny_data, tmp_path):
    file = write_vectors(tmp_path, "npy", ["i0"], np.zeros((1, 3)))
    (tmp_path / "vectors.items").unlink()
    with pytest.raises(UserError, match="vectors.items does not exist"):
        from_file(tiny_data, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("itm_id:token\titm_emb:float_seq\ni0\t1 2 3\ni1\t1 2\n", "widths"),
        ("itm_id:token\ni0\n", "needs an id and a vector column"),
        ("itm_id:token\titm_emb:float_seq\ni0\t1 two 3\n", "i0"),
    ],
)
def test_itememb_is_refused_when_malformed(text, message, tiny_data, tmp_path):
    (tmp_path / "a.itememb").write_text(text)
    with pytest.raises(UserError, match=message):
        from_file(tiny_data, str(tmp_path / "a.itememb"))


def test_npy_is_refused_when_it_is_another_kind_of_file(tiny_data, tmp_path):
    (tmp_path / "a.npy").write_text("not an array")
    (tmp_path / "a.items").write_text("i0\n")
    with pytest.raises(UserError, match="a.npy"):
        from_file(tiny_data, str(tmp_path / "a.npy"))
