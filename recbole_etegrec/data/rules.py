"""What the keys of the data must be together."""

from collections.abc import Iterator

from recbole.utils import ModelType

from recbole_etegrec.config import Config
from recbole_etegrec.config.keys import named_in
from recbole_etegrec.data.tasks import TASKS

CLASSIFIERS = (ModelType.CONTEXT, ModelType.DECISIONTREE)  # they learn labels, and rank nothing


def rules_of_all(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs as those of `rules`, of what holds for RecBole's own models too."""
    mode, model = config["eval_args"]["mode"], config["model"]
    modes = mode.values() if isinstance(mode, dict) else [mode]
    yield (
        "labeled" in modes and config["MODEL_TYPE"] not in CLASSIFIERS,
        f"eval_args: mode (labeled) is for models that classify labelled pairs; {model} ranks "
        "items: give full, or a number of sampled ones, such as uni100",
    )
    yield (
        bool(config["benchmark_filename"]) and model == "DIEN",
        "benchmark_filename: DIEN samples histories that pre-split files do not have: give it "
        "one .inter file",
    )


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    split, order = config["eval_args"]["split"], config["eval_args"]["order"]
    files = config["benchmark_filename"]
    for name in config["tasks"] or {}:
        yield named_in(TASKS, "tasks", name)
    whole = split == {"LS": "valid_and_test"}
    yield not (whole or files), f"eval_args: split ({split}) must be LS: valid_and_test"
    yield order != "TO", f"eval_args: order ({order}) must be TO: sequences follow time"
