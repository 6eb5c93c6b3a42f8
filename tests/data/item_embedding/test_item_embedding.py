"""Item embeddings: from training interactions alone, cached by what they are made of."""

import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import sparse

from recbole_etegrec import quick_start
from recbole_etegrec.data import create_dataset, embedding_width, item_vectors
from recbole_etegrec.data.item_embedding import ITEM_EMBEDDINGS
from recbole_etegrec.data.item_embedding.cache import cached
from recbole_etegrec.data.item_embedding.collaborative import (
    cooccurrence,
    largest_eigenvectors,
    ppmi_svd,
)
from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.checks import check_rules
from tests.conftest import write_interactions
from tests.helpers import embedding_of, small_config, small_data, small_values


def random_histories() -> list[list[int]]:
    """The first user meets all items in training, so that ids do not depend on the others."""
    rng = np.random.default_rng(0)
    others = [rng.integers(0, 20, rng.integers(4, 15)).tolist() for _ in range(30)]
    return [[*range(20), 0, 1], *others]


@pytest.mark.parametrize("source", ["collaborative", "sasrec"])
def test_embedding_is_the_same_when_held_out_items_are_altered(source, tmp_path):
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
        more = {"item_embedding": source, "sasrec_epochs": 1, "embedding_cache": cache}
        found[name] = embedding_of(str(tmp_path), name, **more)
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


def test_embedding_sets_standardised_parts_side_by_side_when_sources_are_several(
    tiny_data, tmp_path
):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", 100 + rng.standard_normal((40, 3)))
    (tmp_path / "v.items").write_text("".join(f"i{n}\n" for n in range(40)))
    more = {"item_embedding_file": str(tmp_path / "v.npy"), "sasrec_epochs": 1}
    names = ["sasrec", "file", "collaborative"]
    parts = [embedding_of(tiny_data, item_embedding=name, **more) for name in names]
    assert [part.shape[1] for part in parts] == [10, 3, 10]
    fused = embedding_of(tiny_data, item_embedding=names, **more)
    assert np.array_equal(fused, np.concatenate(parts, axis=1))
    alone = embedding_of(tiny_data, item_embedding=["file"], **more)
    assert np.array_equal(alone, parts[1])


@pytest.mark.parametrize("source", ["collaborative", "sasrec"])
def test_embedding_follows_the_seed_alone_when_made_anew(source, tiny_data, tmp_path):
    found = {}
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        more = {"item_embedding": source, "sasrec_epochs": 2, "embedding_cache": tmp_path / name}
        config = small_config(tiny_data, seed=seed, **more)
        train = small_data(config)[1].train._dataset
        torch.manual_seed(len(found))
        state = torch.get_rng_state()
        found[name] = item_vectors(config, train).embedding
        assert torch.equal(torch.get_rng_state(), state)  # cached or not, a run goes on alike
    assert np.array_equal(found["first"], found["second"])
    # A factorisation has one answer, whatever vector it starts from.
    assert np.array_equal(found["first"], found["other"]) == (source == "collaborative")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("sasrecc", "item_embedding (sasrecc) must be one of collaborative, file, sasrec, text"),
        ("sasrecc", "did you mean 'sasrec'?"),
        (["file", "txt"], "must be one of collaborative, file, sasrec, text, or a list of them"),
        (["sasrec", "collaborative", "sasrec"], "names sasrec more than once"),
        ([], "must name a source"),
        (None, "item_embedding (None) must be one of"),
    ],
)
def test_embedding_is_refused_when_its_sources_make_no_sense(value, message, tiny_data):
    with pytest.raises(UserError) as error:
        check_rules(small_config(tiny_data, item_embedding=value))
    assert message in str(error.value)


def test_embedding_comes_from_a_source_when_it_is_registered_in_the_table(tiny_data, monkeypatch):
    monkeypatch.setitem(ITEM_EMBEDDINGS, "mine", lambda config, dataset: np.eye(dataset.item_num))
    config = small_config(tiny_data, item_embedding=["collaborative", "mine"])
    check_rules(config)
    train_dataset = small_data(config)[1].train._dataset
    assert item_vectors(config, train_dataset).embedding.shape == (41, 10 + 41)
    assert embedding_width(config, train_dataset) == 10 + 41


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
    rarer = np.minimum(totals, totals[:, None])
    ppmi = np.where(ppmi > 0, ppmi, 0) * dense / (dense + 1) * rarer / (rarer + 1)
    found = ppmi_svd(counts, 40, np.random.default_rng(1))
    assert found.shape == (12, 40)
    assert not found[0].any()  # without a count
    u, s, _ = np.linalg.svd(ppmi)
    expected = (u[:, :10] * s[:10]) @ u[:, :10].T
    length = np.sqrt(np.diag(expected)[1:])
    expected = expected[1:, 1:] / np.outer(length, length)  # rows come at unit length
    np.testing.assert_allclose(found[1:] @ found[1:].T, expected, atol=1e-8)


def cache_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_cache_has_vectors_made_once_when_several_runs_want_them(tmp_path):
    made: list[int] = []

    def make() -> np.ndarray:
        made.append(1)
        time.sleep(0.2)
        return np.full((2, 3), len(made), dtype=np.float32)

    with ThreadPoolExecutor(3) as pool:
        wanted = [pool.submit(cached, tmp_path, {"source": "slow"}, make) for _ in range(3)]
    assert made == [1]
    assert all(np.array_equal(each.result(), np.ones((2, 3))) for each in wanted)


def test_cache_gives_the_same_array_when_hit(tiny_data, tmp_path):
    first = embedding_of(tiny_data, embedding_cache=str(tmp_path))
    (path,) = cache_files(tmp_path)
    assert path.suffix == ".safetensors"
    assert np.array_equal(embedding_of(tiny_data, embedding_cache=str(tmp_path)), first)
    # What is in the file is what is used: turned round, it comes back turned round.
    with safe_open(path, "np") as file:
        metadata, vectors = file.metadata(), file.get_tensor("embedding")[:, ::-1].copy()
    metadata["sha256"] = hashlib.sha256(vectors.tobytes()).hexdigest()
    save_file({"embedding": vectors}, path, metadata=metadata)
    again = embedding_of(tiny_data, embedding_cache=str(tmp_path))
    np.testing.assert_allclose(again, first[:, ::-1], atol=1e-6)
    assert cache_files(tmp_path) == [path]


def damage_by_cutting(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_by_one_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_one_bit, lambda content: b""])
def test_cache_is_made_anew_when_the_file_is_damaged(damage, tiny_data, tmp_path, caplog):
    first = embedding_of(tiny_data, embedding_cache=str(tmp_path))
    (path,) = cache_files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "recbole_etegrec"):
        assert np.array_equal(embedding_of(tiny_data, embedding_cache=str(tmp_path)), first)
    assert "is damaged, its vectors are made anew" in caplog.text
    caplog.clear()
    assert np.array_equal(embedding_of(tiny_data, embedding_cache=str(tmp_path)), first)
    assert "damaged" not in caplog.text


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


def test_ppmi_svd_leaves_items_without_a_vector_when_their_component_is_cut_off():
    pairs, cluster = 30, 12
    size = 2 * pairs + cluster
    counts = np.zeros((size, size))
    for pair in range(pairs):
        counts[2 * pair, 2 * pair + 1] = counts[2 * pair + 1, 2 * pair] = 5
    inside = np.random.default_rng(0).integers(100, 900, (cluster, cluster))
    counts[2 * pairs :, 2 * pairs :] = np.triu(inside, 1) + np.triu(inside, 1).T
    vectors = ppmi_svd(sparse.csr_matrix(counts), 1, np.random.default_rng(1))
    norms = np.linalg.norm(vectors, axis=1)
    assert norms[: 2 * pairs] == pytest.approx(1)
    assert (norms[2 * pairs :] == 0).all()


def test_plan_trains_nothing_when_embeddings_are_not_cached(tiny_data, tmp_path):
    values = small_values(tiny_data, embedding_cache=str(tmp_path / "cache"))
    values |= {"item_embedding": ["collaborative", "sasrec"], "sasrec_epochs": 10**5}
    plan = quick_start.plan("ETEGRecLlama", "tiny", config_dict=values)
    assert plan.model.item_embedding.shape[1] == 2 * values["semantic_hidden_size"]
    assert not (tmp_path / "cache").exists()


def test_largest_eigenvectors_are_those_of_the_svd_when_found_by_products():
    table = sparse.random(300, 300, density=0.05, random_state=0)
    table = (table + table.T).tocsr()
    u, s, _ = np.linalg.svd(table.toarray())
    rng = np.random.default_rng(0)
    vectors, values = largest_eigenvectors(table, 20, rng, torch.device("cpu"))
    np.testing.assert_allclose(values, s[:20], rtol=1e-6)
    overlap = np.abs(np.sum(vectors * u[:, :20], axis=0))  # signs are free
    np.testing.assert_allclose(overlap, 1, atol=1e-5)
