"""What the keys of ranking must be together."""

from collections.abc import Iterator

from recbole_etegrec.config import Config
from recbole_etegrec.config.keys import named_in
from recbole_etegrec.decoding import RANKERS


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    yield named_in(RANKERS, "ranking", config["ranking"])
    yield from RANKERS[config["ranking"]].rules(config)
