"""Weights & Biases beside the metrics of a run, where it is wanted."""

import pytest

from recbole_etegrec.config import Config, checks
from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.trackers import make_trackers

WANTED = {"log_wandb": True, "wandb_project": "tried"}


def test_config_is_refused_when_wandb_is_wanted_and_not_installed(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs the package wandb: pip install wandb"):
        Config("ETEGRecLlama", "ml-100k", config_dict=WANTED)


def test_wandb_keeps_a_run_in_files_when_it_is_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    config = Config("ETEGRecLlama", "ml-100k", config_dict=WANTED)
    tracker = make_trackers(config, RunDirectory(tmp_path))[1]
    tracker.start()
    tracker.log({"valid/ndcg@10": 0.5}, step=1)
    tracker.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
