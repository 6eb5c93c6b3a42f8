"""Item embeddings of SASRec: the function that RecBole trains, or the vectors of a run of it."""

import json
import logging
import shutil
from collections import ChainMap
from pathlib import Path

import numpy as np
import pytest
import recbole.data
import torch
from safetensors.numpy import load_file

from recbole_etegrec.config import Config, find_recbole_model
from recbole_etegrec.data import create_dataset, item_vectors
from recbole_etegrec.data.item_embedding import sasrec, standardised
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.errors import UserError
from recbole_etegrec.quick_start import run
from recbole_etegrec.runs.checks import check_rules
from tests.conftest import write_interactions
from tests.helpers import embedding_of, small_config, small_data, small_values


def small_sasrec(config: Config, dataset) -> torch.nn.Module:
    """RecBole's SASRec as it is trained here, in evaluation mode, with weights that matter."""
    torch.manual_seed(0)
    width, longest = config["semantic_hidden_size"], config["MAX_ITEM_LIST_LENGTH"]
    architecture = {**sasrec.sasrec_settings(width, longest), "initializer_range": 0.3}
    return find_recbole_model("SASRec")(ChainMap(architecture, config), dataset).eval()


def test_states_equal_recboles_when_each_prefix_is_a_row_of_its_own(tiny_data):
    config = small_config(tiny_data, semantic_hidden_size=16)
    model = small_sasrec(config, create_dataset(config))
    rng = np.random.default_rng(0)
    lengths = [50, 1, 7, 20]
    items = torch.zeros(len(lengths), 50, dtype=torch.long)
    for row, length in enumerate(lengths):
        items[row, :length] = torch.from_numpy(rng.integers(1, 41, length))
    rows = [(row, end) for row, length in enumerate(lengths) for end in range(1, length + 1)]
    prefixes = torch.zeros(len(rows), 50, dtype=torch.long)
    for place, (row, end) in enumerate(rows):
        prefixes[place, :end] = items[row, :end]
    with torch.no_grad():
        expected = model(prefixes, torch.tensor([end for _, end in rows]))
        found = sasrec.whole_sequence_states(model, items)
    found = torch.stack([found[row, end - 1] for row, end in rows])
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_loss_equals_recboles_when_it_reads_the_training_part_of_recbole(tmp_path):
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 20, rng.integers(4, 15)).tolist() for _ in range(30)]
    write_interactions(tmp_path, "d", histories)
    config = small_config(str(tmp_path), "d", semantic_hidden_size=16)
    train = small_data(config)[1].train._dataset
    model = small_sasrec(config, train)
    loader = SequenceLoader(
        train,
        max_tokens=40,
        code_length=1,
        training_rows="sequences",
        window_overlap=0.5,
        cut_probability=0.0,
        seed=0,
    )
    assert len(loader) > 1
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    step = sasrec.training_step(model, torch.device("cpu"), cuda_graphs=True)
    found = sasrec.train_epoch(model, loader, still, step, loader.max_items)

    theirs = Config("SASRec", "d", config_dict={"data_path": str(tmp_path), "state": "ERROR"})
    rows = recbole.data.create_dataset(theirs).build()[0].inter_feat
    assert len(rows) == sum(max(len(history) - 3, 0) for history in histories)
    assert found == pytest.approx(model.calculate_loss(rows).item(), abs=1e-5)


@pytest.mark.parametrize("minutes", [0, 10])
def test_log_says_what_else_there_is_when_training_takes_long(
    minutes, tiny_data, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(sasrec, "LONG", minutes)
    config = small_config(tiny_data, item_embedding="sasrec", embedding_cache=str(tmp_path))
    config["sasrec_epochs"] = 1
    with caplog.at_level(logging.INFO, "recbole_etegrec"):
        item_vectors(config, small_data(config)[1].train._dataset)
    lines = [m for m in caplog.messages if "item_embedding: collaborative does without" in m]
    assert len(lines) == (minutes == 0)


def test_training_lowers_the_loss_when_sequences_can_be_learned(tiny_data, caplog):
    with caplog.at_level(logging.INFO, "recbole_etegrec"):
        config = small_config(tiny_data, item_embedding="sasrec", semantic_hidden_size=32)
        config["sasrec_epochs"], config["seed"] = 60, 1
        item_vectors(config, small_data(config)[1].train._dataset)
    (line,) = (m for m in caplog.messages if m.startswith("item embeddings: SASRec, 60 epochs"))
    first, last = (float(word) for word in line.replace(",", "").split() if "." in word)
    assert first == pytest.approx(np.log(41), abs=0.2)  # all items alike
    assert last < first - 0.3


def test_embedding_draws_vectors_when_items_have_no_neighbour_in_training(tmp_path, caplog):
    # The last two items of a user are held out; item 20 is all that its users have.
    histories = [[u % 10, (u + 1) % 10, (u + 2) % 10, 10 + u % 10, u % 7] for u in range(20)]
    write_interactions(tmp_path, "cold", [*histories, [20], [20]])
    config = small_config(str(tmp_path), "cold", item_embedding="sasrec", sasrec_epochs=2)
    train = small_data(config)[1].train._dataset
    with caplog.at_level(logging.INFO, "recbole_etegrec"):
        found = item_vectors(config, train).embedding
    assert "11 of 21 items have no neighbour in training" in caplog.text
    assert len(np.unique(found, axis=0)) == len(found)
    assert np.array_equal(item_vectors(config, train).embedding, found)  # from the cache, then


def test_cache_is_not_hit_when_what_sasrec_learns_from_differs(tiny_data, tmp_path):
    values = {"item_embedding": "sasrec", "sasrec_epochs": 1, "embedding_cache": str(tmp_path)}
    first = embedding_of(tiny_data, **values)
    assert np.array_equal(embedding_of(tiny_data, cooccurrence_window=2, **values), first)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    different = [
        {"sasrec_epochs": 2},
        {"semantic_hidden_size": 8},
        {"seed": 1},
        {"MAX_ITEM_LIST_LENGTH": 20},
    ]
    for more in different:
        embedding_of(tiny_data, **{**values, **more})
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 + len(different)


def test_config_refuses_sasrec_when_its_heads_do_not_divide_the_width(tiny_data):
    with pytest.raises(UserError, match=r"semantic_hidden_size \(9\) must be even for sasrec"):
        check_rules(small_config(tiny_data, item_embedding="sasrec", semantic_hidden_size=9))
    check_rules(small_config(tiny_data, semantic_hidden_size=9))


# Vectors of a run --------------------------------------------------------------------------------

RUN = {"epochs": 1, "hidden_size": 12, "n_heads": 1, "show_progress": False, "state": "WARNING"}


@pytest.fixture(scope="module")
def sasrec_run(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of RecBole's SASRec on `tiny`."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("SASRec", "tiny", config_dict={**RUN, "data_path": tiny_data, "run_dir": str(folder)})
    return folder


def item_weight(run_dir: Path) -> np.ndarray:
    return load_file(run_dir / "best" / "model.safetensors")["state.item_embedding.weight"]


def from_run(data_path: str, sasrec_run: Path, dataset: str = "tiny") -> np.ndarray:
    return embedding_of(data_path, dataset, item_embedding="sasrec", sasrec_run=str(sasrec_run))


def test_run_gives_the_vectors_of_its_checkpoint_when_named(tiny_data, sasrec_run):
    found = from_run(tiny_data, sasrec_run)
    assert found.shape == (41, 12)  # the width of the run
    expected = standardised(item_weight(sasrec_run)).embedding
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_run_is_matched_by_tokens_when_it_has_other_item_ids(tiny_data, tmp_path):
    # RecBole numbers the items of the .item file too, and here it comes first.
    shutil.copytree(Path(tiny_data) / "tiny", tmp_path / "tiny")
    lines = "".join(f"i{n}\t{n}\n" for n in reversed(range(45)))
    (tmp_path / "tiny" / "tiny.item").write_text("item_id:token\tprice:float\n" + lines)
    values = {"load_col": {"item": ["item_id", "price"], "inter": ["user_id", "item_id"]}}
    values |= {**RUN, "data_path": str(tmp_path), "run_dir": str(tmp_path / "run")}
    run("SASRec", "tiny", config_dict=values)
    table = item_weight(tmp_path / "run")
    config = Config("SASRec", "tiny", config_dict=values)
    theirs = recbole.data.create_dataset(config).field2token_id["item_id"]
    assert len(table) == 46
    ours = create_dataset(small_config(tiny_data)).field2id_token["item_id"]
    expected = standardised(table[[theirs[token] for token in ours]]).embedding
    np.testing.assert_allclose(from_run(tiny_data, tmp_path / "run"), expected, atol=1e-6)


def test_run_is_refused_when_it_trained_on_other_interactions(tmp_path, sasrec_run):
    rng = np.random.default_rng(0)
    write_interactions(tmp_path, "tiny", [rng.integers(0, 40, 9).tolist() for _ in range(60)])
    with pytest.raises(UserError, match=r"trained on \d+ interactions of tiny, which are not the"):
        from_run(str(tmp_path), sasrec_run)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eval_args", {"split": {"LS": "test_only"}}, r"its eval_args had split \{'LS': 'test_"),
        ("model", "BPR", "is a run of BPR, not of SASRec"),
        ("data_path", "/nowhere", "sasrec_run: dataset 'tiny': no file /nowhere/tiny/tiny.inter"),
    ],
)
def test_run_is_refused_when_it_may_have_seen_what_is_held_out(
    key, value, message, tiny_data, sasrec_run, tmp_path
):
    other = shutil.copytree(sasrec_run, tmp_path / "run")
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(f"{text}\n{key}: {json.dumps(value)}\n")
    with pytest.raises(UserError, match=message):
        from_run(tiny_data, other)


@pytest.mark.parametrize("file", ["config.yaml", "result.json", "best/model.safetensors"])
def test_run_is_refused_by_the_config_when_it_has_not_finished(
    file, tiny_data, sasrec_run, tmp_path
):
    other = shutil.copytree(sasrec_run, tmp_path / "run")
    (other / file).unlink()
    with pytest.raises(UserError, match=r"sasrec_run \(.*\) must be the directory of a finished"):
        check_rules(small_config(tiny_data, item_embedding="sasrec", sasrec_run=str(other)))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_run_is_refused_when_its_checkpoint_is_damaged(content, tiny_data, sasrec_run, tmp_path):
    other = shutil.copytree(sasrec_run, tmp_path / "run")
    (other / "best" / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="best/model.safetensors has no item embeddings"):
        from_run(tiny_data, other)


def test_model_has_the_width_of_its_sources_when_they_are_fused(tiny_data, sasrec_run, tmp_path):
    values = small_values(
        tiny_data,
        item_embedding=["collaborative", "sasrec"],
        sasrec_run=str(sasrec_run),
        run_dir=str(tmp_path / "run"),
        epochs=0,
    )
    assert run("ETEGRecLlama", "tiny", config_dict=values)["test_result"]["recall@20"] > 0
