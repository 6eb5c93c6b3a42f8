"""The table of keys, against what it speaks of: shipped defaults and the tables of the parts."""

import re
import subprocess
import sys

import pytest
import yaml
from recbole.evaluator.register import metric_types
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_etegrec.config import RECBOLE_PROPERTIES, Config, Loader, is_ours, properties_dir
from recbole_etegrec.config.files import recbole_models
from recbole_etegrec.config.keys import KEYS
from recbole_etegrec.config.models import ENSEMBLE, STANDS_ON, lineage
from recbole_etegrec.config.recbole_keys import METRICS, RECBOLE_KEYS
from recbole_etegrec.config.values import check_values, known_keys
from recbole_etegrec.data.item_embedding import ITEM_EMBEDDINGS
from recbole_etegrec.decoding import RANKERS
from recbole_etegrec.errors import UserError
from recbole_etegrec.model import MODELS
from recbole_etegrec.recommender import BACKBONES, PRECISIONS
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.tokenizer import RQVAE, TOKENIZERS
from recbole_etegrec.trainer.schedule import SCHEDULES
from tests.helpers import small_config

DEFAULTS = properties_dir() / "model" / "ETEGRecLlama.yaml"
YAML_FILES = [
    file
    for file in sorted(properties_dir().rglob("*.yaml"))
    if file.parent.name not in ("accelerate", "prompts")
]


def test_table_has_the_keys_of_the_shipped_defaults():
    assert yaml.load(DEFAULTS.read_text("utf-8"), Loader).keys() == KEYS.keys()


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: file.stem)
def test_table_says_and_takes_what_a_shipped_file_does(file):
    source = file.read_text("utf-8")
    table = {**RECBOLE_KEYS, **KEYS}
    for name, kind in re.findall(r"^(\w+):[^#\n]*# \(([^)]*)\)", source, re.MULTILINE):
        assert kind == table[name].kind, name
    values = yaml.load(source, Loader)
    model = file.stem.partition("-")[0]
    model = model if model in (*STANDS_ON, *recbole_models()) else "ETEGRecLlama"
    assert values.keys() <= known_keys(model)
    check_values(values, model)


def test_comment_on_a_key_of_the_defaults_lists_the_names_of_the_table():
    lines = re.split(r"\n(?=\w+:)", DEFAULTS.read_text("utf-8"))
    comments = {line.partition(":")[0]: f"{lines[n - 1]}{line}" for n, line in enumerate(lines)}
    for name, key in KEYS.items():
        assert all(str(word) in comments[name] for word in key.names), name


def test_table_of_recboles_keys_is_whole():
    for file in ("overall", "dataset/sample", "quick_start_config/knowledge_base"):
        values = yaml.load((RECBOLE_PROPERTIES / f"{file}.yaml").read_text("utf-8"), Loader)
        assert values.keys() <= RECBOLE_KEYS.keys()
        check_values(values)
    assert {name.lower() for name in METRICS} == set(metric_types)
    for category in (general_arguments, training_arguments, evaluation_arguments):
        assert set(category) <= RECBOLE_KEYS.keys()
    assert set(dataset_arguments) <= RECBOLE_KEYS.keys()


@pytest.mark.parametrize("model", recbole_models())
def test_table_takes_what_recbole_ships_for_a_model(model):
    file = RECBOLE_PROPERTIES / "model" / f"{model}.yaml"
    values = (yaml.load(file.read_text("utf-8"), Loader) or {}) if file.is_file() else {}
    check_values(values, model)
    assert values.keys() <= known_keys(model)


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("item_embedding", ITEM_EMBEDDINGS),
        ("tokenizer", TOKENIZERS),
        ("backbone", BACKBONES),
        ("schedule", SCHEDULES),
        ("ranking", RANKERS),
        ("precision", PRECISIONS),
    ],
)
def test_table_names_what_a_part_comes_with(key, table):
    assert set(KEYS[key].names) == set(table)


def test_models_stand_on_the_defaults_of_the_class_that_they_are_derived_from():
    assert STANDS_ON.keys() - {ENSEMBLE} == MODELS.keys()
    for name, model in MODELS.items():
        assert model.__name__ == name
        bases = [parent.__name__ for parent in reversed(model.__mro__)]
        assert lineage(name) == [parent for parent in bases if parent in MODELS]
        config = Config(name, "ml-100k")
        assert (config["MODEL_TYPE"], config["MODEL_INPUT_TYPE"]) == (model.type, model.input_type)
        assert is_ours(config) and is_ours(config.inputs)
    assert not is_ours(Config("SASRec", "ml-100k"))


def test_wrong_value_is_refused_when_nothing_heavy_is_imported():
    code = """
import sys
from recbole_etegrec.cli import main
codes = [main([argument]) for argument in ("--num_beams=0", "--model=SASRecc", "--num_beam=1")]
sys.exit(codes != [2, 2, 2] or not {"torch", "numpy", "recbole"}.isdisjoint(sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"code_num": True}, "code_num (True) must be a whole number from 1 to 65536"),
        ({"dropout": 1}, "dropout (1) must be a number, 0 or above, below 1"),
        ({"beta": "x"}, "beta (x) must be a number, 0 or above"),
        ({"init_std": float("nan")}, "init_std (nan) must be a number above 0, 1 at most"),
        ({"cut_probability": 1.5}, "cut_probability (1.5) must be a number, 0 or above, 1 at most"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing (1) must be True or False"),
        ({"clip_grad_norm": {"norm": 1}}, "clip_grad_norm: unknown key 'norm'"),
        ({"tokenizer_hidden_sizes": [0]}, "([0]) must be a list of whole numbers from 1"),
        ({"seed": -1}, "seed (-1) must be a whole number from 0 to 4294967295"),
    ],
)
def test_value_is_refused_when_its_key_does_not_take_it(values, message):
    with pytest.raises(UserError) as error:
        check_values(values)
    assert message in str(error.value)


def test_name_is_known_when_it_is_registered_in_the_table_of_its_part(tiny_data, monkeypatch):
    config = small_config(tiny_data, tokenizer="mine")
    with pytest.raises(UserError, match=r"tokenizer \(mine\) must be one of rqvae, rqkmeans"):
        check_rules(config)
    monkeypatch.setitem(TOKENIZERS, "mine", RQVAE)
    check_rules(config)
