"""The rules of all parts, called in one place at the start of all work with a configuration."""

from collections.abc import Iterator
from itertools import chain

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.config.models import ENSEMBLE
from recbole_etegrec.data import rules as data
from recbole_etegrec.data.item_embedding import rules as item_embedding
from recbole_etegrec.decoding import rules as decoding
from recbole_etegrec.decoding.ranker import candidate_rules
from recbole_etegrec.errors import UserError
from recbole_etegrec.preference import rules as preference
from recbole_etegrec.recommender import rules as recommender
from recbole_etegrec.tokenizer import rules as tokenizer
from recbole_etegrec.trainer import rules as trainer

_PARTS = (data, item_embedding, tokenizer, recommender, decoding, preference, trainer)
_ADVISERS = (recommender, trainer)


def check_rules(config: Config, *, embeds: bool = True) -> None:
    """Refuse keys that contradict each other, or need what is not there.

    RecBole's own models have hardly any of these keys.

    Args:
        embeds: whether item embeddings are going to be made.

    Raises:
        UserError: a rule of a part is broken.
    """
    rules = [data.rules_of_all(config)]
    if config["model"] == ENSEMBLE:
        rules += [_joined(trains=embeds), data.rules(config), candidate_rules(config)]
    elif is_ours(config):
        parts = _PARTS if embeds else [part for part in _PARTS if part is not item_embedding]
        rules += [part.rules(config) for part in parts]
    for broken, message in chain.from_iterable(rules):
        if broken:
            raise UserError(message)


def _joined(*, trains: bool) -> Iterator[tuple[bool, str]]:
    """An ensemble is no model that could be trained."""
    yield trains, f"model ({ENSEMBLE}): it is made of runs: see recbole-etegrec ensemble (--help)"


def advice(config: Config) -> Iterator[str]:
    """What is allowed but hardly ever wanted, a line each."""
    for part in _ADVISERS:
        yield from part.advice(config)
