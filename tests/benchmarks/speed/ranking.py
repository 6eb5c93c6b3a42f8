"""Ranking: beam search behind a cache against other ways to the same items."""

from collections.abc import Iterator

import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data.item_embedding import embedding_sources
from recbole_etegrec.decoding import ExactScores, Ranking, beam_search
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.model.build import recommender_spec, tuning_of
from recbole_etegrec.recommender import Recommender, build_recommender
from recbole_etegrec.runs.parts import load_data
from recbole_etegrec.tokenizer import ItemCodes
from tests.benchmarks.first_design import (
    AllowedTokens,
    CodeLM,
    generate_transformers,
    generate_uncached,
    left_padded,
)
from tests.benchmarks.flops import beam_flops
from tests.benchmarks.speed.measure import Stopwatch, Work, against

BEAMS = (20, 50)
BATCHES = 6  # of users with histories of like length, as evaluation has them
SLOW_USERS = 8  # of each, for the slow ways
DRAWN_USERS = 16  # of a batch that is drawn at random
EXACT_USERS = 4


def ranking_rows(
    values: dict, watch: Stopwatch, datasets: list[str], _folder: str
) -> Iterator[dict]:
    """Rows of each number of beams, and of the exact ranking."""
    config = Config("ETEGRecLlama", datasets[0], config_dict=values)
    _, (train, _, test) = load_data(config)
    recommender, codes = untrained(config, train._dataset.item_num)
    batches = evaluation_batches(test._dataset, config["eval_batch_size"])
    seconds = {}
    for beams in BEAMS:
        works, ours = compared(recommender, codes, batches, beams)
        same = {name: agreement(works[name].run(), ours) for name in ("uncached", "transformers")}
        if beams == BEAMS[0]:
            works["exact"] = exact(recommender, codes, batches[BATCHES // 2])
        found = watch.in_turn(works)
        seconds[beams] = found["ours"].seconds
        titles = {
            "uncached": ("no cache, history run again for each beam and code", 30),
            "transformers": ("transformers' generate, prefix_allowed_tokens_fn", 10),
            "exact": ("exact ranking of all items", None),
        }
        for name in (name for name in titles if name in works):
            title, target = titles[name]
            row = against(name, found, f"{beams} beams: {title}", "users/s")
            yield {**row, "target": target, **same.get(name, {})}
    yield {
        "row": "time of 50 beams over that of 20",
        "ratio": seconds[50] / seconds[20],
        "target": 2.2,
        "lower": True,
    }
    found = watch.in_turn({"ours": with_head(config, "fused"), "beam": with_head(config, "beam")})
    row = against("beam", found, f"fused ranking, against {BEAMS[0]} beams", "users/s")
    yield {**row, "target": 0.5}


def with_head(config: Config, ranking: str) -> Work:
    """A ranking of users by an untrained model with an item head."""
    values = {**config.inputs, "ranking": ranking, "num_beams": BEAMS[0]}
    config = Config("ETEGRecLlama", config["dataset"], config_dict=values)
    _, (train, _, test) = load_data(config)
    torch.manual_seed(0)
    width = config["semantic_hidden_size"] * len(embedding_sources(config))
    embedding = torch.randn(train._dataset.item_num, width)
    model = ETEGRecLlama(config, train._dataset, embedding).eval()
    batches = [batch[0] for batch in test]
    batches = batches[len(batches) // BATCHES // 2 :: len(batches) // BATCHES][:BATCHES]

    def run() -> None:
        with torch.no_grad():
            for interaction in batches:
                model.ranker.best(interaction, max(config["topk"]))

    return Work(run, sum(len(interaction) for interaction in batches))


def untrained(config: Config, n_items: int) -> tuple[Recommender, ItemCodes]:
    """A recommender with random weights, and random codes: speed depends on neither."""
    torch.manual_seed(0)
    spec = recommender_spec(config, config["semantic_hidden_size"], config["e_dim"])
    recommender = build_recommender(spec, tuning_of(config)).eval()
    return recommender, random_codes(n_items, config["code_num"], config["code_length"])


def random_codes(n_items: int, code_num: int = 256, code_length: int = 4) -> ItemCodes:
    """Codes drawn at random, with their trie."""
    codes = ItemCodes(n_items=n_items, code_length=code_length, code_num=code_num)
    codes.rebuild(torch.randint(code_num, (n_items - 1, code_length - 1)))
    return codes


def evaluation_batches(dataset, size: int) -> list[torch.Tensor]:
    """Histories ``[B, T]`` of the middle batches of equal parts of an evaluation."""
    rows = len(dataset.inter_feat)
    batches = []
    for part in range(BATCHES):
        middle = int((part + 0.5) * rows / BATCHES) // size * size
        batch = dataset.inter_feat[torch.arange(middle, min(middle + size, rows))]
        length = batch[dataset.item_list_length_field]
        batches.append(batch[dataset.item_id_list_field][:, : int(length.max())])
    return batches


def beams_of(
    recommender: Recommender, codes: ItemCodes, items: torch.Tensor, num_beams: int
) -> Ranking:
    """The package's own beam search, of histories padded on the right."""
    with torch.no_grad():
        history = recommender.encode_history(codes(items), items > 0)
        return beam_search(recommender, codes.trie, history, num_beams)


def compared(
    recommender: Recommender, codes: ItemCodes, batches: list[torch.Tensor], num_beams: int
) -> tuple[dict[str, Work], Ranking]:
    """Our way and the two slow ones, and what ours gives for the users of the slow ones.

    Without a cache, users come as a loader draws them, padded to the longest; transformers is given
    batches of like length, as ours is.
    """
    lengths = torch.cat([(items > 0).sum(1) for items in batches]).numpy() * codes.trie.depth
    part = [items[:: len(items) // SLOW_USERS][:SLOW_USERS] for items in batches]
    chosen = torch.cat([_widen(items, part) for items in part])
    drawn = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
    model, allowed = CodeLM.of(recommender), AllowedTokens(codes.trie, codes.code_num)

    def uncached(count: int) -> Ranking:
        found = []
        for rows in drawn[:count].split(DRAWN_USERS):
            items = left_padded(chosen[rows], (chosen[rows] > 0).sum(1))
            found.append(generate_uncached(recommender, codes, items, num_beams))
        joined = joined_rankings(found)
        back = drawn[:count].argsort()
        return Ranking(joined.items[back], joined.scores[back])

    def transformers(parts: list[torch.Tensor]) -> Ranking:
        found = []
        for items in parts:
            items = left_padded(items, (items > 0).sum(1))
            found.append(generate_transformers(model, allowed, codes, items, num_beams))
        return joined_rankings(found)

    def ours(parts: list[torch.Tensor]) -> Ranking:
        return joined_rankings([beams_of(recommender, codes, p, num_beams) for p in parts])

    works = {
        "ours": Work(
            lambda: ours(batches), len(lengths), beam_flops(recommender, lengths, num_beams)
        ),
        "uncached": Work(lambda: uncached(len(drawn)), len(drawn), small=lambda: uncached(2)),
        "transformers": Work(
            lambda: transformers(part), len(chosen), small=lambda: transformers([part[0][:2]])
        ),
    }
    return works, ours(part)


def _widen(items: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
    """Padded on the right to the longest of all parts."""
    width = max(part.shape[1] for part in parts)
    return torch.nn.functional.pad(items, (0, width - items.shape[1]))


def joined_rankings(rankings: list[Ranking]) -> Ranking:
    """One ranking of all users."""
    return Ranking(*(torch.cat(column) for column in zip(*rankings, strict=True)))


def exact(recommender: Recommender, codes: ItemCodes, items: torch.Tensor) -> Work:
    """Exact ranking of a few users."""
    ranking = ExactScores(recommender, codes.trie)
    few = items[:EXACT_USERS]

    def run() -> None:
        with torch.no_grad():
            ranking(recommender.encode_history(codes(few), few > 0))

    return Work(run, len(few), small=lambda: None)


def agreement(found: Ranking, ours: Ranking) -> dict[str, float]:
    """How far two rankings are the same.

    Raises:
        SystemExit: they are not, so that their times cannot be compared.
    """
    same = float((found.items == ours.items).float().mean())
    apart = float((found.scores - ours.scores).abs().max())
    if same < 0.999 or apart > 1e-4:
        raise SystemExit(f"results differ: {same:.2%} of the items are the same, scores {apart}")
    return {"same_items": same, "scores_apart": apart}
