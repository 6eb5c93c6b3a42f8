"""What a model must not become, whatever its validation metric says."""

from collections.abc import Mapping
from copy import copy

from recbole_etegrec.config import Config

DEPTHS = (1, 5, 10, 50)  # at which rankings are looked at
_COVERAGE, _DEEP = "itemcoverage@10", "recall@50"
_METRICS = ("Recall", "NDCG", "ItemCoverage")


class Guard:
    """Limits that end a preference phase; a model beyond one of them is never kept.

    Args:
        max_kl: most that the model may have moved, in nats a code.
        max_dead: largest share of groups without anything to teach.
        min_coverage: least share of the items in top tens before that must still be in some.
        min_recall: least share of Recall@50 before.
    """

    def __init__(self, *, max_kl: float, max_dead: float, min_coverage: float, min_recall: float):
        self.most = {"kl": max_kl, "dead_groups": max_dead}
        self.least = {_COVERAGE: min_coverage, _DEEP: min_recall}

    def faults(
        self,
        before: Mapping[str, float],
        result: Mapping[str, float],
        signals: Mapping[str, float],
    ) -> list[str]:
        """Which limits are passed, a text each.

        Args:
            before: metrics of the model of before.
            result: the same of the present one.
            signals: of the epoch before them, see :class:`Signals`; empty where it had no groups.
        """
        found = [
            f"{name} {signals[name]:.4f} is above {limit:g}"
            for name, limit in self.most.items()
            if signals.get(name, 0.0) > limit
        ]
        return found + [
            f"{name} {result[name]:.4f} is below {share:g} of {before[name]:.4f}"
            for name, share in self.least.items()
            if result[name] < share * before[name]
        ]


def wider(config: Config) -> Config:
    """The same configuration with the metrics that a guard looks at, besides its own."""
    wide = copy(config)
    metrics = [*config["metrics"], *_METRICS]
    unique = {metric.lower(): metric for metric in reversed(metrics)}
    wide.final_config_dict = {
        **config.final_config_dict,
        "topk": sorted({*config["topk"], *DEPTHS}),
        "metrics": list(unique.values()),
    }
    return wide


def told(result: Mapping[str, float], items: int) -> str:
    """Metrics that a guard looks at, as a text.

    Args:
        items: of the catalogue.
    """
    recall = "/".join(f"{result[f'recall@{k}']:.4f}" for k in DEPTHS)
    tops = round(result["itemcoverage@1"] * items)
    return (
        f"recall@{'/'.join(map(str, DEPTHS))} {recall}, ndcg@10 {result['ndcg@10']:.4f}, "
        f"{_COVERAGE} {result[_COVERAGE]:.4f}, {tops} distinct items in first place"
    )
