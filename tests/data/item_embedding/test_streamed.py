"""Counting in parts and factorising in few products, against doing it all at once."""

import numpy as np
import pytest
import torch
from scipy import sparse
from tqdm import tqdm

from recbole_etegrec.data.item_embedding import collaborative, streamed
from recbole_etegrec.data.item_embedding.collaborative import cooccurrence, ppmi_svd
from recbole_etegrec.data.item_embedding.streamed import streamed_ppmi, subspace
from recbole_etegrec.data.sequences import Sequences
from tests.helpers import small_config, small_data

N_ITEMS, WINDOW = 60, 3


def random_sequences(gap: int = 0) -> Sequences:
    """Sequences of items of which some come often, with other items between them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 150)
    start = np.cumsum(lengths + gap) - lengths - gap
    items = (rng.zipf(1.3, int((lengths + gap).sum())) % (N_ITEMS - 2) + 1).astype(np.int32)
    return Sequences(items, start, start + lengths, np.arange(1, 151))


def ppmi_of(sequences: Sequences) -> np.ndarray:
    """All at once, in full."""
    (block,) = sequences.blocks()
    counts = cooccurrence(block.items, sequences.offsets, N_ITEMS, WINDOW).toarray()
    totals = counts.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log(counts * totals.sum() / (totals * totals.T))
        rarer = np.minimum(totals, totals.T)
        pmi *= counts / (counts + 1) * rarer / (rarer + 1)
    return np.where(counts > 0, np.maximum(np.nan_to_num(pmi, neginf=0), 0), 0)


@pytest.mark.parametrize("pairs", [50, 2**26])
@pytest.mark.parametrize("gap", [0, 2])
def test_streamed_ppmi_is_that_of_all_at_once(pairs, gap, tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "PAIRS", pairs)
    sequences = random_sequences(gap)
    parts = tmp_path / "parts"
    found = streamed_ppmi(sequences, N_ITEMS, WINDOW, parts, tqdm(disable=True))
    np.testing.assert_allclose(found.toarray(), ppmi_of(sequences), atol=1e-5)
    assert not parts.exists()


def test_pairs_that_say_most_are_kept_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "NEIGHBOURS", 5)
    sequences = random_sequences()
    found = streamed_ppmi(sequences, N_ITEMS, WINDOW, tmp_path / "p", tqdm(disable=True)).toarray()
    whole = ppmi_of(sequences)
    assert np.array_equal(found, found.T)
    np.testing.assert_allclose(found[found > 0], whole[found > 0], atol=1e-5)
    for row in range(N_ITEMS):
        positive = np.flatnonzero(whole[row] > 0)
        assert (found[row] > 0).sum() >= min(5, len(positive))
        strongest = np.sort(whole[row, positive])[::-1][:5]
        kept = np.sort(found[row, found[row] > 0])[::-1][: len(strongest)]
        np.testing.assert_allclose(kept, strongest, atol=1e-5)


def test_parts_that_were_made_are_taken_up_and_damaged_ones_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "PAIRS", 300)
    sequences, parts, made = random_sequences(), tmp_path / "parts", []
    counts = streamed._counts

    def stopping(*arguments):
        made.append(arguments[1])
        if len(made) == 4:
            raise KeyboardInterrupt
        return counts(*arguments)

    monkeypatch.setattr(streamed, "_counts", stopping)
    with pytest.raises(KeyboardInterrupt):
        streamed_ppmi(sequences, N_ITEMS, WINDOW, parts, tqdm(disable=True))
    first = sorted(parts.iterdir())[0]
    first.write_bytes(b"damaged")
    found = streamed_ppmi(sequences, N_ITEMS, WINDOW, parts, tqdm(disable=True))
    assert made[4:6] == [made[0], made[3]]
    np.testing.assert_allclose(found.toarray(), ppmi_of(sequences), atol=1e-5)


def test_subspace_has_the_largest_eigenvectors():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    values = np.concatenate([[50, -40, 30, 20], rng.uniform(-1, 1, 296)])
    matrix = sparse.csr_matrix(((basis * values) @ basis.T).astype(np.float32))
    u, s = subspace(matrix, 4, rng, torch.device("cpu"), tqdm(disable=True))
    np.testing.assert_allclose(s, [50, 40, 30, 20], rtol=1e-4)
    np.testing.assert_allclose(np.abs((u * basis[:, :4]).sum(axis=0)), 1, atol=1e-4)


def test_vectors_are_alike_whichever_way_they_are_made(tiny_data, tmp_path, monkeypatch):
    train = small_data(small_config(tiny_data))[1].train._dataset
    arguments = {"width": 8, "window": 2, "seed": 1, "device": torch.device("cpu")}
    arguments |= {"show_progress": False}

    def made(folder: str) -> np.ndarray:
        return collaborative.collaborative_embedding(train, cache=tmp_path / folder, **arguments)

    once = made("once")
    monkeypatch.setattr(collaborative, "LARGE", 0)
    streamed_vectors = made("streamed")
    assert np.array_equal(made("streamed"), streamed_vectors)
    assert len(list((tmp_path / "streamed").glob("*.safetensors"))) == 1
    alike = [vectors[1:] @ vectors[1:].T for vectors in (once, streamed_vectors)]
    assert np.corrcoef(alike[0].ravel(), alike[1].ravel())[0, 1] > 0.97
    assert ppmi_svd(sparse.csr_matrix((4, 4)), 2, np.random.default_rng(0)).shape == (4, 2)
