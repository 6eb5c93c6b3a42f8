"""Values of the command line and of files: what is refused in one line, before all else."""

import pytest

from recbole_etegrec import cli, quick_start
from recbole_etegrec.config.recbole_keys import RECBOLE_KEYS
from recbole_etegrec.config.values import check_chosen, check_values, keys_of, parse_value
from recbole_etegrec.errors import UserError

REFUSED = [
    "--seed=4294967296",
    "--seed=-1",
    "--seed=1e3",
    "--seed='7'",
    "--seed=１２",  # noqa: RUF001  digits of another script
    "--seed=True",
    "--seed=None",
    "--seed=",
    "--seed=[1]",
    "--seed=99999999999999999999999999",
    "--metrics=[1]",
    "--metrics=[]",
    "--metrics=[Recal]",
    "--metrics=[Recall,Recall]",
    "--metrics=None",
    "--valid_metric=None",
    "--valid_metric=5",
    "--valid_metric=NDCG@0",
    "--valid_metric=NDCG@ten",
    "--topk={[1]:2}",
    '--topk=[5,"x"]',
    "--topk=[]",
    "--topk=[5,5]",
    "--topk=[0]",
    "--topk=[-5]",
    "--topk=[5.0]",
    "--topk=True",
    "--load_col=5",
    "--load_col={}",
    "--load_col={'item':['item_id']}",
    "--load_col={'inter':'user_id'}",
    "--val_interval=abc",
    "--val_interval={'rating':'3,5'}",
    "--user_inter_num_interval=abc",
    "--user_inter_num_interval=[5]",
    "--user_inter_num_interval=[9,5]",
    "--item_inter_num_interval=[nan,5]",
    "--encoding=foo",
    "--encoding=base64",
    "--field_separator=",
    "--seq_separator='\n'",
    "--code_num=1000000000",
    "--code_num=0",
    "--code_num=1e3",
    "--code_length=1",
    "--code_length=10000",
    "--MAX_ITEM_LIST_LENGTH=1000000000",
    "--MAX_ITEM_LIST_LENGTH=0",
    "--epochs=1000000000000",
    "--epochs=ten",
    "--run_dir=" + "x" * 300,
    "--run_dir=" + "x/" * 3000,
    "--run_dir= ",
    "--run_dir=a\nb",
    "--data_path=\x1b[31m",
    '--eval_args={"mode":"uni-5"}',
    '--eval_args={"mode":"uni0"}',
    '--eval_args={"mode":"uni"}',
    '--eval_args={"mode":"uni1e3"}',
    '--eval_args={"mode":"uni99999999"}',
    '--eval_args={"mode":5}',
    '--eval_args={"mode":{"valid":"full","tset":"full"}}',
    '--eval_args={"foo":1}',
    '--eval_args={"split":{"LS":"all"}}',
    '--eval_args={"split":{"RS":[0.8,0.2]}}',
    '--eval_args={"split":{"RS":[0,1,1]}}',
    '--eval_args={"split":{"RS":[8,1,"x"]}}',
    '--eval_args={"split":{}}',
    '--eval_args={"order":"time"}',
    '--eval_args={"group_by":"item"}',
    "--eval_args=full",
    "--eval_args=None",
    "--learning_rate=1e999",
    "--learning_rate=nan",
    "--learning_rate=0",
    "--learning_rate=-0.1",
    "--learning_rate=fast",
    "--learning_rate=[0.1]",
    "--use_gpu=maybe",
    "--use_gpu=1",
    "--use_gpu=None",
    "--memory_gib=1e-9",
    "--memory_gib=inf",
    "--dropout=1.5",
    "--init_std=0",
    "--clip_grad_norm={'max_norm':-1}",
    "--clip_grad_norm=5",
    "--train_neg_sample_args={'distribution':'normal'}",
    "--gpu_id=first one!",
    "--state=LOUD",
    "--exclude_history=maybe",
    "--threshold=4",
    "--rm_dup_inter=middle",
    "--benchmark_filename=[train]",
    "--tokenizer_hidden_sizes=[512,0]",
    "--text_fields=title",
    "--item_embedding=5",
    "--schedule=pretraining",
    "--model=ETEGRecLLama",
    "--model=",
    "--model=../x",
    "--dataset=",
    "--config_files=",
    "--num_beam=20",
    "--topk=" + "[" * 5000,
]


def refusal(capsys, *arguments: str) -> str:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 600
    return error


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    def run(*_args, **_kwargs):
        raise AssertionError("accepted")

    monkeypatch.setattr(quick_start, "run", run)


@pytest.mark.parametrize("argument", REFUSED, ids=lambda argument: repr(argument)[:60])
def test_value_is_refused_in_one_line_that_names_its_key_when_it_is_wrong(argument, capsys):
    key = argument.removeprefix("--").partition("=")[0]
    assert key in refusal(capsys, argument)


@pytest.mark.parametrize("key", sorted(RECBOLE_KEYS.keys() - {"dataset", "model", "resume"}))
def test_key_takes_no_value_of_a_wrong_kind(key):
    for wrong in (float("nan"), object(), b"x", {1: 2}, [[]], 1j, -(10**400)):
        with pytest.raises(UserError, match=f"^{key}"):
            check_values({key: wrong}, "SASRec")


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        ("SASRec", {"hidden_size": -3}, "hidden_size (-3) must be a whole number from 1"),
        ("SASRec", {"n_layers": 2.5}, "n_layers (2.5) must be a whole number"),
        ("SASRec", {"loss_type": "CEE"}, "loss_type (CEE) must be one of BPR, CE; did you mean"),
        ("SASRec", {"hidden_act": "gell"}, "did you mean 'gelu'?"),
        ("SASRec", {"hidden_dropout_prob": 7}, "hidden_dropout_prob (7) must be a number"),
        ("LightGCN", {"reg_weight": float("inf")}, "reg_weight (inf) must be a finite number"),
        ("NeuMF", {"mlp_hidden_size": [64, 0]}, "mlp_hidden_size ([64, 0]) must be a list"),
        ("BPR", {"embedding_size": "big"}, "embedding_size (big) must be a whole number"),
    ],
)
def test_key_of_a_model_of_recbole_takes_what_its_default_is_like(model, values, message):
    with pytest.raises(UserError) as error:
        check_values(values, model)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"topk": 10, "metrics": "recall", "valid_metric": "recall@10"},
        {"gpu_id": "0,1"},
        {"gpu_id": 0},
        {"gpu_id": ""},
        {"load_col": None},
        {"load_col": {"inter": "*"}},
        {"val_interval": {"rating": "[3,inf)", "timestamp": "(-inf,5];[7,9)"}},
        {"eval_args": {"mode": {"valid": "uni100", "test": "full"}, "group_by": None}},
        {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO"}},
        {"field_separator": "\t", "seq_separator": "|"},
        {"encoding": "utf-8-sig"},
        {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}},
        {"seed": 2**32 - 1},
        {"dataset": "数据"},
    ],
)
def test_value_is_taken_when_recbole_takes_it(values):
    check_values(values, "SASRec")
    table = keys_of("SASRec")
    assert [table[key].fault(key, value) for key, value in values.items()] == [None] * len(values)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("run_dir", "2024", "2024"),
        ("run_dir", "True", "True"),
        ("run_dir", "None", None),
        ("data_path", "'my data/'", "my data/"),
        ("USER_ID_FIELD", "1", "1"),
        ("val_interval", "{'a':'[1,2]'}", {"a": "[1,2]"}),
    ],
)
def test_parse_value_leaves_a_text_when_its_key_takes_texts_alone(key, text, value):
    assert parse_value(key, text) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: ten\n", "epochs (ten) must be a whole number"),
        ("epochs: '5'\n", "epochs ('5') must be a whole number"),
        ("epochs: ~\n", "epochs (None) must be"),
        ("epoch: 5\n", "unknown config key 'epoch'; did you mean 'epochs'?"),
        ("5: 5\n", "unknown config key '5'"),
        ("model: [SASRec]\n", "unknown model '['SASRec']'"),
        ("threshold: 2024-02-31\n", "not valid YAML"),
        ("user_inter_num_interval: [5, 10]\n", "must be an interval in quotes"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("just text", "found a str"),
        ("5", "found a int"),
        ("? [1]\n: 2\n", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_file_is_refused_in_one_line_when_its_values_are_wrong(tmp_path, capsys, content, message):
    file = tmp_path / "a.yaml"
    file.write_text(content)
    assert message in refusal(capsys, f"--config_files={file}")


def test_comparison_is_refused_when_a_value_is_wrong_for_one_of_its_models(capsys):
    assert "n_layers (x)" in refusal(capsys, "compare", "--models=Pop,SASRec", "--n_layers=x")
    assert "'Popp'" in refusal(capsys, "compare", "--models=Pop,Popp")
    assert "num_beams (0)" in refusal(capsys, "recommend", "no_run", "--all", "--num_beams=0")


def test_unknown_keys_are_passed_over_when_a_run_that_goes_on_has_its_own_model(tmp_path):
    check_chosen([], "", [], {"resume": str(tmp_path), "n_layers": "2"})
    with pytest.raises(UserError, match="save_steps"):
        check_chosen([], "", [], {"resume": str(tmp_path), "save_steps": "-1"})


def test_table_of_the_plugin_wins_over_recboles_where_both_have_a_key():
    assert keys_of("ETEGRecLlama")["eval_step"].kind == "int >= 1"
    assert keys_of("SASRec")["eval_step"].kind == "int >= 0"
