"""What the keys of ranking must be together."""

from collections.abc import Iterator

from recbole.evaluator import metric_information

from recbole_etegrec.config import Config
from recbole_etegrec.config.keys import KEYS, named_in


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    yield named_in(KEYS["ranking"].names, "ranking", config["ranking"])
    beam = config["ranking"] == "beam"
    beams, largest = config["num_beams"], max(config["topk"])
    yield (
        beam and beams < largest,
        f"num_beams ({beams}) must be >= max(topk) ({largest}): raise num_beams or lower topk",
    )
    needs_all = [m for m in config["metrics"] if "rec.meanrank" in metric_information[m.lower()]]
    yield (
        beam and bool(needs_all) and "full" in config["eval_args"]["mode"].values(),
        f"metrics ({', '.join(needs_all)}) need the scores of all items: set ranking: exact",
    )
