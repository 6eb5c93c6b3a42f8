"""What the keys of ranking must be together."""

from collections.abc import Iterator

from recbole_etegrec.config import Config
from recbole_etegrec.config.keys import named_in
from recbole_etegrec.decoding import RANKERS, ranking_of


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    name = ranking_of(config)
    yield named_in(RANKERS, "ranking", name)
    yield from RANKERS[name].rules(config)
