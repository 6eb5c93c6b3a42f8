"""How the time of training and ranking grows with each size, as an exponent: 1 is linear."""

from collections.abc import Callable, Iterator

import torch

from recbole_etegrec.config import Config
from recbole_etegrec.decoding import ExactScores
from recbole_etegrec.losses import recommendation_loss
from recbole_etegrec.model.build import recommender_spec, tuning_of
from recbole_etegrec.recommender import Recommender, build_recommender
from recbole_etegrec.tokenizer import ItemCodes
from tests.benchmarks.speed.measure import Stopwatch, Work, exponent
from tests.benchmarks.speed.ranking import beams_of, random_codes

HISTORIES = (10, 25, 50, 100, 200, 400)
CATALOGUES = (1_000, 12_101, 100_000, 1_000_000)
BEAMS = (10, 20, 50, 100)
WIDTHS = (64, 128, 256, 512)


def growth_rows(values: dict, watch: Stopwatch, _datasets, _folder: str) -> Iterator[dict]:
    """A row for each pair of a work and a size."""
    models = {width: recommender_of(values, width) for width in WIDTHS}
    tables = {count: random_codes(count + 1) for count in CATALOGUES}
    model, codes = models[128], tables[12_101]

    def train(rows: int = 4, history: int = 50, model=model, codes=codes) -> Callable:
        return training_step(model, codes, rows, history)

    def rank(users: int = 64, history: int = 9, beams: int = 20, model=model, codes=codes):
        items = random_items(codes, users, history)
        return lambda: beams_of(model, codes, items, beams)

    kinds = {
        "training, history": {t: train(history=t) for t in HISTORIES},
        "training, catalogue": {n: train(codes=tables[n]) for n in CATALOGUES},
        "training, width": {w: train(model=models[w]) for w in WIDTHS},
        "20 beams, history": {t: rank(16, t) for t in HISTORIES},
        "20 beams, catalogue": {n: rank(codes=tables[n]) for n in CATALOGUES},
        "beam search, beams": {k: rank(32, beams=k) for k in BEAMS},
        "20 beams, width": {w: rank(16, model=models[w]) for w in WIDTHS},
        "exact ranking, catalogue": {n: exact_ranking(model, n) for n in (500, 2_000, 8_000)},
        "code table and trie, catalogue": {n: rebuild(n) for n in CATALOGUES},
    }
    for name, works in kinds.items():
        found = watch.in_turn({str(size): Work(run) for size, run in works.items()})
        sizes = list(works)
        seconds = [found[str(size)].seconds for size in sizes]
        yield {
            "row": f"{name} {sizes[0]} to {sizes[-1]}",
            "ratio": exponent(sizes, seconds),
            "unit": "exponent",
            "sizes": sizes,
            "seconds": seconds,
        }
        if name == "20 beams, catalogue":
            yield {
                "row": "20 beams: time with 1M items over that with 12k",
                "ratio": seconds[-1] / seconds[1],
                "target": 1.1,
                "lower": True,
            }


def recommender_of(values: dict, width: int) -> Recommender:
    """Untrained, for histories as long as the longest."""
    more = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "MAX_ITEM_LIST_LENGTH": HISTORIES[-1],
    }
    config = Config("ETEGRecLlama", "ml-100k", config_dict={**values, **more})
    spec = recommender_spec(config, config["semantic_hidden_size"], config["e_dim"])
    return build_recommender(spec, tuning_of(config)).eval()


def random_items(codes: ItemCodes, rows: int, history: int) -> torch.Tensor:
    """Histories ``[rows, history]``."""
    return torch.randint(1, len(codes.table), (rows, history))


def training_step(model: Recommender, codes: ItemCodes, rows: int, history: int) -> Callable:
    """Forward and backward of sequences in which each item but the first is a target."""
    items = random_items(codes, rows, history + 1)
    index = torch.arange(rows * history)

    def run() -> None:
        output = model(codes(items), index)
        recommendation_loss(output.logits, codes(items[:, 1:].flatten())).mean().backward()
        model.zero_grad()

    return run


def exact_ranking(model: Recommender, n_items: int) -> Callable:
    """Exact ranking of a catalogue for two users."""
    codes = random_codes(n_items + 1)
    ranking, items = ExactScores(model, codes.trie), random_items(codes, 2, 9)

    @torch.no_grad()
    def run() -> None:
        ranking(model.encode_history(codes(items), items > 0))

    return run


def rebuild(n_items: int) -> Callable:
    """A new code table with its trie."""
    codes = random_codes(n_items + 1)
    semantic = torch.randint(codes.code_num, (n_items, codes.table.shape[1] - 1))
    return lambda: codes.rebuild(semantic)
