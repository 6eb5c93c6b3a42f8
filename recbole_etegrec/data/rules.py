"""What the keys of the data must be together."""

from collections.abc import Iterator

from recbole_etegrec.config import Config


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    split, order = config["eval_args"]["split"], config["eval_args"]["order"]
    files = config["benchmark_filename"]
    whole = split == {"LS": "valid_and_test"}
    yield not (whole or files), f"eval_args: split ({split}) must be LS: valid_and_test"
    yield order != "TO", f"eval_args: order ({order}) must be TO: sequences follow time"
