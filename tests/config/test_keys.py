"""The table of keys, against what it speaks of: shipped defaults and the tables of the parts."""

import re
import subprocess
import sys

import pytest
import yaml

from recbole_etegrec.config import Config, Loader, is_ours, properties_dir
from recbole_etegrec.config.keys import KEYS, check_values
from recbole_etegrec.config.models import STANDS_ON, lineage
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


def test_table_has_the_keys_and_types_of_the_shipped_defaults():
    said = re.findall(r"^(\w+):.*?# \(([\w, ]+)\)", DEFAULTS.read_text("utf-8"), re.MULTILINE)
    assert dict(said) == {name: key.kind for name, key in KEYS.items()}
    assert yaml.load(DEFAULTS.read_text("utf-8"), Loader).keys() == KEYS.keys()


def test_table_takes_all_shipped_values():
    for file in properties_dir().rglob("*.yaml"):
        check_values(yaml.load(file.read_text("utf-8"), Loader))


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
    assert STANDS_ON.keys() == MODELS.keys()
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
from recbole_etegrec.config.keys import check_values
from recbole_etegrec.config.models import STANDS_ON
from recbole_etegrec.errors import UserError
try:
    check_values({"num_beams": 0})
except UserError as error:
    assert str(error) == "num_beams (0) must be a whole number above 0"
    sys.exit(not {"torch", "numpy", "yaml", "recbole"}.isdisjoint(sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"code_num": True}, "code_num (True) must be a whole number above 0"),
        ({"dropout": 1}, "dropout (1) must be a number in [0, 1)"),
        ({"beta": "x"}, "beta (x) must be a number, 0 or above"),
        ({"init_std": float("nan")}, "init_std (nan) must be a number above 0, 1 at most"),
        ({"cut_probability": 1.5}, "cut_probability (1.5) must be a number from 0 to 1"),
        ({"gradient_checkpointing": 1}, "must be one of True, False"),
        ({"clip_grad_norm": {"norm": 1}}, "must be like {'max_norm': 1.0}, or nothing"),
        ({"tokenizer_hidden_sizes": [0]}, "([0]) must be a list of whole numbers above 0"),
        ({"seed": -1}, "seed (-1) must be a whole number, 0 or above"),
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
