"""Runs that are taken up again: those of another version are refused."""

import pytest
import yaml

from recbole_etegrec import load_run, run
from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.run_directory import RunDirectory
from tests.helpers import small_config, small_values


@pytest.mark.parametrize("how", ["load_run", "resume=DIR", "resume=True"])
def test_run_is_refused_when_an_earlier_version_wrote_it(how, tiny_data, tmp_path):
    recorded = {**small_config(tiny_data).inputs, "loss_kind": "CE"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recorded))
    message = "written by an earlier version, which had a key 'loss_kind': train it anew"
    with pytest.raises(UserError, match=message) as error:
        if how == "load_run":
            load_run(str(tmp_path))
        elif how == "resume=DIR":
            run(config_dict={"resume": str(tmp_path)})
        else:
            there = {"run_dir": str(tmp_path), "resume": True}
            run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **there))
    assert str(error.value).startswith(f"run_dir {RunDirectory(tmp_path).path}: ")
    assert "\n" not in str(error.value)


def test_key_of_the_user_is_refused_as_such_when_the_run_has_none_of_it(tiny_data, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small_config(tiny_data).inputs))
    with pytest.raises(UserError, match="unknown config key 'num_beam'; did you mean 'num_beams'"):
        load_run(str(tmp_path), {"num_beam": 5})
