"""What is said of a training before and while it goes on."""

import logging
import re

import pytest

from recbole_etegrec.trainer.outlook import Outlook, duration
from recbole_etegrec.trainer.schedule import SCHEDULES, Phase, Stage
from tests.helpers import small_config
from tests.trainer.trainers import make_trainer


def phases() -> list[Phase]:
    stage = {name: Stage("p", name) for name in ("tokenizer", "recommender")}
    judged = Stage("p", "recommender", evaluate=True)
    return [
        Phase("pretraining", (stage["tokenizer"],) * 3, {}, loader="items"),
        Phase("alternation", (stage["tokenizer"], judged) * 2, {}),
        Phase("final", (stage["recommender"], judged), {}),
    ]


def test_outlook_says_how_many_epochs_and_by_which_keys():
    outlook = Outlook(phases())
    assert outlook.epochs == 6
    assert str(outlook) == (
        "epochs of the tokenizer alone: 3 of pretraining (tokenizer_epochs); then 6 epochs at "
        "most: 4 of alternation (epochs), 2 of final (finetune_epochs)"
    )


def test_outlook_names_no_key_when_a_phase_is_a_users_own():
    own = Phase("mine", (Stage("mine", "recommender"),), {})
    assert str(Outlook([own])) == "1 epochs at most: 1 of mine"


def test_every_phase_of_the_table_has_its_key(tiny_data):
    config = small_config(tiny_data)
    for name in SCHEDULES:
        text = str(Outlook([SCHEDULES[name](config)]))
        assert re.search(rf"\d+ of {name} \((\w+)\)", text)[1] in config


def test_time_left_is_that_of_all_phases_once_epochs_of_each_kind_are_known():
    outlook = Outlook(phases())
    outlook.note("tokenizer", 10)
    assert outlook.left("alternation", 1) == ""  # how long a recommender's takes is not known
    outlook.note("recommender", 100)
    outlook.note("recommender", 120)
    outlook.note("evaluation", 30)
    # An evaluation, a tokenizer's epoch, three of the recommender's and two more evaluations.
    assert outlook.left("alternation", 2) == f", at most {duration(10 + 3 * 110 + 2 * 30)} left"
    assert outlook.left("final", 1) == ", at most 2 min left"
    assert outlook.left("final", 2) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (90, "2 min"), (3 * 3600 + 240, "3 h 04 min")]
)
def test_duration_is_in_words(seconds, text):
    assert duration(seconds) == text


def test_log_has_a_line_for_each_epoch_but_the_tokenizers_own(tiny_data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    values = {"tokenizer_epochs": 5, "epochs": 2, "finetune_epochs": 1}
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", **values)
    trainer.fit(loaders.train, loaders.valid)
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["5/5", "1/3", "2/3", "3/3"]
    assert sum(line.startswith("tokenizer: ") for line in caplog.messages) == 1
    assert sum("3 epochs at most: 2 of alternation" in line for line in caplog.messages) == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5 + 3 + 1
