"""What the keys of the tokenizer must be together."""

from collections.abc import Iterator

from recbole_etegrec.config import Config
from recbole_etegrec.config.keys import named_in
from recbole_etegrec.tokenizer import TOKENIZERS, Tokenizer


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    name, slack = config["tokenizer"], config["code_slack"]
    yield named_in(TOKENIZERS, "tokenizer", name)
    yield (
        slack > 0 and config["collision"] != "suffix",
        f"code_slack ({slack}) holds codes that collision ({config['collision']}) gives away: set "
        "code_slack to 0, or collision to suffix",
    )
    kind = TOKENIZERS.get(name, Tokenizer)
    yield (
        slack > 0 and kind.encode is not Tokenizer.encode and kind.hold is Tokenizer.hold,
        f"code_slack ({slack}) needs a tokenizer ({name}) that has a `hold` beside its own "
        "`encode`: set code_slack to 0, or write one",
    )
