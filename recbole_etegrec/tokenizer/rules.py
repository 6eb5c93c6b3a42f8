"""What the keys of the tokenizer must be together."""

from collections.abc import Iterator

from recbole_etegrec.config import Config
from recbole_etegrec.config.keys import named_in
from recbole_etegrec.tokenizer import TOKENIZERS


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    yield named_in(TOKENIZERS, "tokenizer", config["tokenizer"])
