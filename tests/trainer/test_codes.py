"""Codes that training has made useless are the learning rate's fault, and the message says so."""

from types import SimpleNamespace

import pytest

from recbole_etegrec.errors import UserError
from recbole_etegrec.trainer import codes
from recbole_etegrec.trainer.schedule import Stage


def test_refusal_names_the_learning_rate_when_training_has_moved_the_codebooks(monkeypatch):
    def collapsed(*_):
        raise UserError("code_num: 29 items share their semantic codes")

    monkeypatch.setattr(codes, "rebuild_codes", collapsed)
    stage = Stage("alternation", "tokenizer", rebuild_codes=True)
    with pytest.raises(UserError) as refusal:
        codes._moved_codes(SimpleNamespace(code_slack=0.0), stage)
    assert "start anew with a lower learning_rate or" in str(refusal.value)
    assert "code_num" not in str(refusal.value)
