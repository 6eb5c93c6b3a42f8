"""Which value a key ends up with, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recbole.data import create_dataset, data_preparation

from recbole_etegrec.config import Config, parse_value
from recbole_etegrec.config.config import BY_DEVICE
from recbole_etegrec.data import cells
from recbole_etegrec.data.dataset_files import check_dataset_files
from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.checks import check_rules
from tests.conftest import write_interactions


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[5,10]", [5, 10]),
        ("{'mode':'uni100'}", {"mode": "uni100"}),
        ("{LS: valid_and_test}", {"LS": "valid_and_test"}),
        ("[Recall, NDCG]", ["Recall", "NDCG"]),
        ("True", True),
        ("false", False),
        ("None", None),
        ("~", None),
        ("1e-3", 0.001),
        ("20", 20),
        ("'20'", "20"),
        ("Beauty", "Beauty"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("[0,inf)", "[0,inf)"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
    ],
)
def test_parse_value_gives_typed_value_when_given_text(text, value):
    parsed = parse_value("key", text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_parse_value_keeps_interval_as_text_when_it_looks_like_a_list():
    assert parse_value("user_inter_num_interval", "[5,10]") == "[5,10]"


def test_config_prefers_dictionary_then_file_then_defaults_when_all_set_a_key(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("epochs: 7\nlearning_rate: 1e-3\nseed: 3\n")
    config = Config("SASRec", "ml-100k", [str(file)], {"epochs": "9"})
    assert (config["epochs"], config["seed"], config["learning_rate"]) == (9, 3, 0.001)
    assert config["topk"] == [5, 10, 20]
    assert config["no_such_key"] is None


def test_config_ignores_arguments_of_the_process_when_built(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest", "--seed=99", "stray"])
    assert Config("Pop", "ml-100k")["seed"] == 2020


def test_config_keeps_split_when_only_the_mode_is_given():
    config = Config("SASRec", "ml-100k", config_dict={"eval_args": "{'mode':'uni100'}"})
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert config["eval_args"]["mode"] == {"valid": "uni100", "test": "uni100"}


@pytest.mark.parametrize(("model", "distribution"), [("SASRec", "none"), ("BPR", "uniform")])
def test_config_samples_negatives_when_the_loss_needs_them(model, distribution):
    config = Config(model, "ml-100k")
    assert config["train_neg_sample_args"]["distribution"] == distribution


@pytest.mark.parametrize(
    ("model", "values", "size"),
    [
        ("BPR", {}, 2**20),
        ("BPR", {"eval_batch_size": 4096}, 4096),
        ("BPR", {"eval_args": {"mode": "uni100"}}, 4096),
        ("SASRec", {}, 4096),
    ],
)
def test_config_ranks_many_users_at_a_time_when_pairs_are_counted(model, values, size):
    config = Config(model, "ml-100k", config_dict=values)
    assert config["eval_batch_size"] == size
    assert Config(config_dict=config.inputs)["eval_batch_size"] == size


@pytest.mark.parametrize(("device", "place"), [("cpu", 0), ("cuda", 1)])
def test_config_settles_empty_keys_by_the_device_and_keeps_them_elsewhere(
    device, place, monkeypatch
):
    def on(device: str, **values) -> Config:
        def init_device(config) -> None:
            config.final_config_dict.update(device=torch.device(device), single_spec=True)

        monkeypatch.setattr(Config, "_init_device", init_device)
        return Config("ETEGRecLlama", "ml-100k", config_dict=values)

    settled = {key: values[place] for key, values in BY_DEVICE.items()}
    config = on(device)
    assert {key: config[key] for key in BY_DEVICE} == settled
    other = on("cpu" if place else "cuda", **config.inputs)
    assert {key: other[key] for key in BY_DEVICE} == settled
    assert on(device, eval_batch_size=77)["eval_batch_size"] == 77

    resumed = on("cpu" if place else "cuda")
    resumed.keep_settled(config.inputs)
    assert {key: resumed[key] for key in BY_DEVICE} == settled
    resumed = on("cpu" if place else "cuda", eval_batch_size=9)
    resumed.keep_settled(config.inputs)
    assert resumed["eval_batch_size"] == 9  # given anew


@pytest.mark.parametrize("model", ["ETEGRecLlama", "SASRec"])
def test_config_is_rebuilt_when_its_inputs_pass_through_yaml(model, tiny_data):
    ours = {"run_dir": "x", "resume": "True"}
    chosen = {"data_path": os.path.relpath(tiny_data), "topk": "[5, 10]", **ours}
    config = Config(model, "tiny", config_dict=chosen)
    again = Config(config_dict=yaml.safe_load(yaml.safe_dump(config.inputs)))
    assert again.inputs == config.inputs
    assert {**again.final_config_dict, **ours, "resume": True} == config.final_config_dict
    assert config.inputs["data_path"] == tiny_data
    assert not ours.keys() & config.inputs.keys()


def test_config_leaves_visible_devices_alone_when_gpu_id_is_not_given(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    Config("Pop", "ml-100k")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setenv("LOCAL_RANK", "0")
    Config("Pop", "ml-100k", config_dict={"gpu_id": "0"})
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        ("SASRecc", {}, "unknown model 'SASRecc'; did you mean 'SASRec'?"),
        ("sasrec", {}, "did you mean 'SASRec'?"),
        ("SASRec", {"n_layer": 2}, "unknown config key 'n_layer'; did you mean 'n_layers'?"),
        ("SASRec", {"metrics": ["Recal"]}, "did you mean 'Recall'?"),
        ("SASRec", {"topk": 0}, "topk (0) must be a list of different whole numbers"),
        ("SASRec", {"topk": [5]}, r"valid_metric (NDCG@10) needs its K in topk [5]"),
        ("SASRec", {"metrics": ["MRR"]}, "valid_metric (NDCG@10) is not in metrics ['mrr']"),
        ("SASRec", {"eval_args": {"mode": "unix"}}, "eval_args: mode (unix) must be full, labeled"),
        ("SASRec", {"nproc": 2}, "nproc (2): start several processes with accelerate launch"),
        (
            "ETEGRecLlama",
            {"num_beams": 5, "ranking": "beam"},
            "num_beams (5) must be >= max(topk) (20): raise",
        ),
        ("ETEGRecLlama", {"num_beams": 0}, "num_beams (0) must be a whole number from 1"),
        ("ETEGRecLlama", {"save_steps": -1}, "save_steps (-1) must be a whole number from 0"),
        ("ETEGRecLlama", {"gradient_accumulation_steps": 0}, "(0) must be a whole number from 1"),
        ("ETEGRecLlama", {"ranking": "best"}, "ranking (best) must be one of beam, exact"),
        (
            "ETEGRecLlama",
            {"ranking": "fused", "item_head": False},
            "ranking (fused) needs an item head: train with",
        ),
        (
            "ETEGRecLlama",
            {"ranking": "head", "item_head": False},
            "ranking (head) needs an item head: train with",
        ),
        ("ETEGRecLlama", {"item_head": True, "candidates": 5}, "candidates (5) must be >= max"),
        ("ETEGRecLlama", {"item_head": True, "item_weight": 0}, "item_weight (0) must be a number"),
        ("ETEGRec", {"item_head": True}, "item_head (True) is for decoders, and backbone (t5)"),
        ("ETEGRecLlama", {"tokenizer": "[a]"}, "tokenizer ([a]) must be one of rqvae, rqkmeans"),
        ("ETEGRecLlama", {"collision": "ot"}, "collision (ot) must be one of suffix, sinkhorn"),
        ("ETEGRecLlama", {"hidden_size": 130}, "must be a multiple of num_attention_heads (4)"),
        ("ETEGRecLlama", {"metrics": ["GAUC"], "valid_metric": "GAUC"}, "set ranking: exact"),
        ("ETEGRecLlama", {"eval_args": {"split": {"RS": [8, 1, 1]}}}, "must be LS"),
        ("ETEGRecLlama", {"eval_args": {"order": "RO"}}, "must be TO"),
        ("ETEGRecLlama", {"item_embedding": "file"}, "item_embedding_file (None) must be an"),
    ],
)
def test_config_refuses_in_one_line_when_a_value_is_wrong(model, values, message):
    with pytest.raises(UserError) as refusal:
        check_rules(Config(model, "ml-100k", config_dict=values))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_config_leaves_anomaly_detection_off_when_the_model_is_recboles():
    code = "from recbole_etegrec.config import Config; import sys, torch; Config('SASRec');"
    code += "sys.exit(torch.is_anomaly_enabled() or 'sine' not in ' '.join(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("value", [-1, -0.5, 1.5, 200.0, float("inf"), float("nan"), "abc", True])
def test_config_refuses_warmup_steps_when_neither_a_number_of_steps_nor_a_share(value):
    with pytest.raises(UserError, match="warmup_steps .* must be a number of steps, or a share"):
        Config("ETEGRecLlama", "ml-100k", config_dict={"warmup_steps": value})


@pytest.mark.parametrize("value", [0, 0.0, 0.05, 0.999, 1, 200])
def test_config_takes_warmup_steps_when_a_number_of_steps_or_a_share(value):
    config = Config("ETEGRecLlama", "ml-100k", config_dict={"warmup_steps": value})
    assert config["warmup_steps"] == value


def test_config_accepts_few_beams_when_the_ranking_is_exact():
    config = Config("ETEGRecLlama", "ml-100k", config_dict={"num_beams": 5, "ranking": "exact"})
    check_rules(config)
    assert config["num_beams"] == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("- a\n- b\n", "found a list"),
        ("a: [1\nb: 2\n", "not valid YAML at line 2"),
    ],
)
def test_config_refuses_file_when_it_cannot_be_read(tmp_path, content, message):
    file = tmp_path / "a.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        Config("Pop", "ml-100k", [str(file)])


def held_out(model: str, dataset: str, data_path: str) -> list[dict[int, int]]:
    """Validation and test item of each user in the split of `model`."""
    config = Config(model, dataset, config_dict={"data_path": data_path, "state": "ERROR"})
    _, *parts = data_preparation(config, create_dataset(config))
    users, items = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    features = [part._dataset.inter_feat for part in parts]
    return [dict(zip(f[users].tolist(), f[items].tolist(), strict=True)) for f in features]


@pytest.mark.slow
def test_split_holds_out_the_same_items_when_model_is_general_or_sequential(tiny_data):
    # With ties in time (ml-100k has many) too: both kinds of dataset sort stably.
    for dataset, users in (("ml-100k", 943), ("tiny", 60)):
        general, sequential = (held_out(m, dataset, tiny_data) for m in ("BPR", "SASRec"))
        assert len(sequential[1]) == users
        assert general[1] == sequential[1]
        # A user of three interactions has one row to train on and one to test in RecBole's
        # sequential dataset, and none to validate.
        assert sequential[0].items() <= general[0].items()
        assert len(general[0]) - len(sequential[0]) <= 1


def refusal_of_files(folder: Path, model: str = "SASRec", **values) -> str:
    config = Config(model, "d", config_dict={"data_path": str(folder), **values})
    with pytest.raises(UserError) as refusal:
        check_dataset_files(config)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_check_dataset_files_names_what_is_there_when_dataset_is_unknown(tmp_path):
    write_interactions(tmp_path, "other", [[1, 2, 3]])
    message = refusal_of_files(tmp_path)
    assert str(tmp_path / "d" / "d.inter") in message
    assert "datasets found there: other" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id:token\titem_id:token\nu\ti\n", "missing field 'timestamp'"),
        (
            "user_id:token\titem_id:token\ttimestamp\n",
            "token, token_seq, not 'timestamp'",
        ),
        (
            "user_id:token\titem_id:token\ttimestamp:float\nu\ti\t0\nu\tj\n",
            "d.inter, line 3: 2 columns, the header has 3",
        ),
        ("user_id:token\titem_id:token\ttimestamp:float\n", "no lines after the header"),
        ("", "the header needs 'field:type'"),
    ],
)
def test_check_dataset_files_names_the_place_when_a_file_is_broken(tmp_path, content, message):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.inter").write_text(content)
    assert message in refusal_of_files(tmp_path)


def test_check_dataset_files_wants_other_files_when_load_col_names_them(tmp_path):
    write_interactions(tmp_path, "d", [[1, 2, 3]])
    columns = {"inter": ["user_id", "item_id"], "item": ["item_id", "class"]}
    assert "no file" in refusal_of_files(tmp_path, load_col=columns)
    (tmp_path / "d" / "d.item").write_text("item_id:token\tclas:token_seq\ni1\tx\n")
    message = refusal_of_files(tmp_path, load_col=columns)
    assert "missing field 'class'" in message
    assert "did you mean 'clas'?" in message


def test_check_dataset_files_accepts_recboles_own_data_when_lines_end_blank(tmp_path):
    write_interactions(tmp_path, "d", [[1, 2, 3], [2, 3, 4]])
    with (tmp_path / "d" / "d.inter").open("a") as lines:
        lines.write("\n")
    check_dataset_files(Config("SASRec", "d", config_dict={"data_path": str(tmp_path)}))
    check_dataset_files(Config("FDSA", "ml-100k"))
    with (tmp_path / "d" / "d.inter").open("a") as lines:
        lines.write("u0\ti1\n")  # a short line is no blank one, and is counted past it
    assert "line 9: 2 columns, the header has 3" in refusal_of_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"u:token\ti:token\nu1\ti1\rx\nu1\ti2\n", "line 2: has a carriage return inside"),
        (b"u:token\ti:token\nu1\ti1\nu1\ti\0\n", "line 3: has a character NUL"),
        (b"u:token\ti:token\nu1\t\xff\n", "line 2: not utf-8 text"),
        (b"u:token\ti:token\ru1\ti1\r", "lines end with carriage returns alone"),
        (b"u:float\ti:token\n1\ti1\n", "field 'u' must be 'u:token', not 'u:float'"),
        (b"\xef\xbb\xbfu:token\ti:token\nu1\ti1\n", "a byte order mark comes first"),
    ],
)
def test_check_dataset_files_refuses_what_would_be_misread_when_recbole_loads_it(
    content, message, tmp_path
):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.inter").write_bytes(content)
    fields = {"USER_ID_FIELD": "u", "ITEM_ID_FIELD": "i", "load_col": None}
    values = {"data_path": str(tmp_path), "eval_args": {"order": "RO"}, **fields}
    with pytest.raises(UserError, match=message):
        check_dataset_files(Config("BPR", "d", config_dict=values))


@pytest.mark.parametrize("separator", ["\t", ",", "::"])
@pytest.mark.parametrize("chunk", [1, 20, 2**24])
def test_check_dataset_files_counts_lines_the_same_when_read_in_chunks(
    chunk, separator, tmp_path, monkeypatch
):
    monkeypatch.setattr(cells, "CHUNK", chunk)
    header = ["user_id:token", "item_id:token", "timestamp:float"]
    rows = [["u1", "i1", "0"], ["u2", "i2", "1"], [" "], [""], ["u3", "i3", "1e3"], ["u3", "i3"]]
    lines = [separator.join(row) for row in [header, *rows]]
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "d.inter"
    values = {"field_separator": separator}
    for end in ("\n", "\r\n"):
        path.write_bytes(end.join(lines).encode())
        assert "line 7: 2 columns, the header has 3" in refusal_of_files(tmp_path, **values)
        path.write_bytes(end.join(lines[:-1]).encode())
        check_dataset_files(
            Config("SASRec", "d", config_dict={"data_path": str(tmp_path), **values})
        )
        path.write_bytes(end.join([lines[0], " ", "", ""]).encode())
        assert "no lines after the header" in refusal_of_files(tmp_path, **values)


def test_check_dataset_files_takes_all_columns_when_load_col_is_a_star(tmp_path):
    write_interactions(tmp_path, "d", [[1, 2, 3]])
    values = {"data_path": str(tmp_path), "load_col": {"inter": "*"}}
    config = Config("SASRec", "d", config_dict=values)
    check_dataset_files(config)
    assert set(create_dataset(config).inter_feat) == {"user_id", "item_id", "timestamp"}


def test_sequences_of_tiny_data_can_be_learned_when_one_looks_at_steps(tiny_data):
    lines = (Path(tiny_data) / "tiny" / "tiny.inter").read_text().splitlines()[1:]
    users, items, _ = zip(*(line.split("\t") for line in lines), strict=True)
    numbers = np.array([int(item[1:]) for item in items])
    same = np.array(users[1:]) == np.array(users[:-1])
    assert ((numbers[1:] - numbers[:-1])[same] % 40 == 1).mean() > 0.7


def test_config_makes_a_number_of_a_whole_one_when_its_key_takes_any():
    config = Config("ETEGRecLlama", "ml-100k", config_dict={"init_std": 1, "warmup_steps": 1})
    assert type(config["init_std"]) is float
    assert type(config["warmup_steps"]) is type(config["epochs"]) is int
