"""What the keys of a preference phase must be together."""

from collections.abc import Iterator

from recbole_etegrec.config import Config
from recbole_etegrec.config.checks import launched_with
from recbole_etegrec.config.keys import named_in
from recbole_etegrec.preference.groups import PREFERENCES
from recbole_etegrec.preference.rewards import REWARDS


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    names, begins = config["schedule"], config["preference_from"]
    yield named_in(PREFERENCES, "preference", config["preference"])
    yield named_in(REWARDS, "preference_reward", config["preference_reward"])
    if "preference" not in names:
        return
    yield (
        names[-1] != "preference",
        f"schedule ({names}) must end with preference: move it to the end",
    )
    yield (
        not begins and names == ["preference"],
        "schedule (['preference']) needs a trained model: name a finished run by preference_from, "
        "or the phases before it",
    )
    yield (
        config["user_codes"] > 0
        and config["preference"] != "likelihood"
        and config["training_rows"] != "prefixes",
        f"schedule (preference) with user_codes ({config['user_codes']}) needs training_rows: "
        "prefixes, for candidates of the last target of a row are drawn by all before it",
    )
    yield (
        bool(config["distill_from"]) and config["distill_ends"],
        "schedule (preference) with distill_ends (True): candidates are drawn for the last target "
        "of a row, which nobody knows then: set it to False",
    )
    yield (
        config["backbone"] == "t5",
        "schedule (preference) is for decoders, and backbone (t5) is an encoder and a decoder",
    )
    yield (
        launched_with("FSDP"),
        "schedule (preference) needs each process to hold all weights: start with "
        "properties/accelerate/ddp_bf16.yaml",
    )
    yield (
        config["preference"] == "likelihood" and not config["preference_likelihood"],
        "preference (likelihood) has nothing to learn with preference_likelihood (0)",
    )
    yield (
        config["preference"] == "grpo"
        and config["preference_reward"] == "item_head"
        and not config["item_head"],
        "preference_reward (item_head) needs one: train with item_head: True",
    )
    yield (
        config["preference_disliked"] is not None and config["preference"] != "dpo",
        f"preference_disliked ({config['preference_disliked']}) is for preference (dpo), and it is "
        f"{config['preference']}: leave one of them out",
    )
    yield (
        config["preference_hardest"] >= config["code_length"],
        f"preference_hardest ({config['preference_hardest']}) must be below code_length "
        f"({config['code_length']}): no other item shares all codes",
    )
