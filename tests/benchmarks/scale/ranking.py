"""Rankers on catalogues of different sizes: untrained, for speed does not depend on weights."""

import time
from collections.abc import Callable

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.config import Config
from recbole_etegrec.decoding import RANKERS
from recbole_etegrec.decoding.batch import BatchFields
from recbole_etegrec.model.build import recommender_spec, tuning_of
from recbole_etegrec.recommender import Recommender, build_recommender
from recbole_etegrec.tokenizer import ItemCodes

USERS, HISTORY, BATCH = 256, 9, 128
_FIELDS = BatchFields("item_id", "item_id_list", "item_length")


def seconds_of_rankers(items: int) -> dict[str, float]:
    """Seconds in which each ranker finds the ten best items of 256 users, the best of three."""
    recommender, codes = untrained(items)
    rankers = {
        "beam": RANKERS["beam"](recommender, codes, _FIELDS, num_beams=20),
        "fused": RANKERS["fused"](
            recommender,
            codes,
            _FIELDS,
            candidates=30,
            item_score_weight=1.0,
            item_index_from=500_000,
        ),
    }
    histories = torch.randint(1, items + 1, (USERS, HISTORY))
    lengths = torch.full((USERS,), HISTORY)
    batches = [
        Interaction({_FIELDS.history: some, _FIELDS.length: of_some})
        for some, of_some in zip(histories.split(BATCH), lengths.split(BATCH), strict=True)
    ]

    def rank(ranker) -> Callable[[], None]:
        return lambda: [ranker.best(batch, 10) for batch in batches]

    return {name: _seconds(rank(ranker)) for name, ranker in rankers.items()}


def untrained(items: int) -> tuple[Recommender, ItemCodes]:
    """A recommender with an item head, and random codes."""
    torch.manual_seed(0)
    config = Config("ETEGRecLlama", "ml-100k", config_dict={"use_gpu": False, "code_num": 256})
    spec = recommender_spec(config, 256, config["e_dim"], n_items=items + 1)
    recommender = build_recommender(spec, tuning_of(config)).eval()
    head = recommender.item_head
    torch.nn.init.normal_(head.free, std=0.01)
    head.lend(clustered(items + 1))
    codes = ItemCodes(n_items=items + 1, code_length=config["code_length"], code_num=256)
    codes.rebuild(torch.randint(256, (items, config["code_length"] - 1)))
    return recommender, codes


def clustered(count: int) -> torch.Tensor:
    """Vectors ``[count, 256]`` around 5,000 random centres, as items are around themes."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5000, 256, generator=generator)
    vectors = centres[torch.randint(5000, (count,), generator=generator)]
    return vectors.add_(torch.randn(count, 256, generator=generator), alpha=0.5)


def _seconds(run: Callable[[], object]) -> float:
    times = []
    run()
    for _ in range(3):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)
