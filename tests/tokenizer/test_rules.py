"""What the keys of the tokenizer must be together."""

import pytest

from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.tokenizer import TOKENIZERS, RQKMeans
from tests.helpers import small_config


class Turned(RQKMeans):
    """Has codes that are not the nearest, and says nothing of holding them."""

    def encode(self, embedding):
        return super().encode(embedding) + 1


def test_codes_are_not_held_where_nobody_can(tiny_data, monkeypatch):
    monkeypatch.setitem(TOKENIZERS, "turned", Turned)
    for key, value in {"collision": "sinkhorn", "tokenizer": "turned"}.items():
        check_rules(small_config(tiny_data, **{key: value}))
        with pytest.raises(UserError, match=r"code_slack \(0.1\) .* set code_slack to 0"):
            check_rules(small_config(tiny_data, code_slack=0.1, **{key: value}))
    check_rules(small_config(tiny_data, code_slack=0.1, tokenizer="rqkmeans"))
