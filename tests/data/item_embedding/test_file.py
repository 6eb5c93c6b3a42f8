"""Item embeddings from a file: matched by tokens, whole and finite, or refused."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recbole_etegrec.data import create_dataset, item_vectors
from recbole_etegrec.errors import UserError
from tests.helpers import embedding_of, small_config, small_data


def vectors_of(tokens: list[str]) -> np.ndarray:
    """A vector that tells which item it belongs to."""
    numbers = np.array([float(token[1:]) for token in tokens])
    return np.stack([numbers, numbers**2, np.sin(numbers)], axis=1).astype(np.float32)


def write_vectors(folder: Path, kind: str, tokens: list[str], rows: np.ndarray) -> str:
    path = folder / f"vectors.{kind}"
    if kind != "itememb":
        if kind == "npy":
            np.save(path, rows)
        else:
            save_file({"vectors": torch.from_numpy(np.asarray(rows))}, path)
        path.with_suffix(".items").write_text("".join(f"{token}\n" for token in tokens))
    else:
        lines = ["itm_id:token\titm_emb:float_seq"]
        for token, row in zip(tokens, rows.tolist(), strict=True):
            lines.append(f"{token}\t{' '.join(map(repr, row))}")
        path.write_text("\n".join(lines) + "\n")
    return str(path)


def from_file(data_path: str, file: str) -> np.ndarray:
    return embedding_of(data_path, item_embedding="file", item_embedding_file=file)


KINDS = pytest.mark.parametrize("kind", ["npy", "safetensors", "itememb"])


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


def test_safetensors_is_read_when_it_holds_bf16(tiny_data, tmp_path):
    tokens = [f"i{n}" for n in range(40)]
    rows = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    full = from_file(tiny_data, write_vectors(tmp_path, "npy", tokens, rows))
    file = write_vectors(tmp_path, "safetensors", tokens, rows)
    save_file({"vectors": torch.from_numpy(rows).bfloat16()}, file)
    np.testing.assert_allclose(from_file(tiny_data, file), full, atol=0.03)


@pytest.mark.parametrize("tensors", [0, 2])
def test_safetensors_is_refused_when_it_does_not_hold_one_tensor(tensors, tiny_data, tmp_path):
    save_file({str(n): torch.zeros(1, 3) for n in range(tensors)}, tmp_path / "a.safetensors")
    (tmp_path / "a.items").write_text("i0\n")
    with pytest.raises(UserError, match="nor .safetensors with one tensor"):
        from_file(tiny_data, str(tmp_path / "a.safetensors"))


def test_file_is_refused_when_it_is_the_cache_of_another_dataset(tiny_data, tmp_path):
    embedding_of(tiny_data, embedding_cache=str(tmp_path))
    (path,) = tmp_path.glob("*.safetensors")
    with pytest.raises(UserError, match=rf"{path.stem}.items does not exist"):
        from_file(tiny_data, str(path))


def test_file_counts_rows_in_the_log_when_the_dataset_lacks_their_items(
    tiny_data, tmp_path, caplog
):
    tokens = [f"i{n}" for n in range(47)]
    file = write_vectors(tmp_path, "npy", tokens, vectors_of(tokens))
    config = small_config(tiny_data, item_embedding="file", item_embedding_file=file)
    train = small_data(config)[1].train._dataset
    with caplog.at_level(logging.INFO, "recbole_etegrec"):
        item_vectors(config, train)
    assert "has rows for all 40 items, and 7 for others" in caplog.text


@KINDS
def test_file_is_refused_when_it_names_an_item_twice(kind, tiny_data, tmp_path):
    tokens = [*(f"i{n}" for n in range(40)), "i9", "i7"]
    file = write_vectors(tmp_path, kind, tokens, vectors_of(tokens))
    with pytest.raises(UserError, match="has 42 rows for 40 items, 'i7' more than once"):
        from_file(tiny_data, file)
