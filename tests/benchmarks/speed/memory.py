"""Peak bytes of tensors, beside those that must be held; parameters are counted with both."""

from collections.abc import Callable, Iterator

import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data.loader import SequenceBatch
from recbole_etegrec.preflight.memory_trace import AliveBytes
from recbole_etegrec.recommender import Recommender
from recbole_etegrec.recommender.backbone import cached_tensors
from tests.benchmarks.first_design import prefix_loader
from tests.benchmarks.speed.measure import Stopwatch
from tests.benchmarks.speed.ranking import beams_of, random_codes
from tests.benchmarks.speed.training import STAGE, as_first_design, engine_of

MIB = 2**20
MANY_ITEMS = 1_000_000


def memory_rows(
    values: dict, _watch: Stopwatch, datasets: list[str], folder: str
) -> Iterator[dict]:
    """A training step of each kind, a batch of beams, and a code table of a large catalogue."""
    config = Config("ETEGRecLlama", datasets[0], config_dict=values)
    engine, train = engine_of(config, folder)
    model = engine.model
    largest = train.largest_micro_batch()
    engine.step([largest], STAGE)  # makes the optimizer's states
    states = [
        t
        for state in engine.bare_optimizer("recommender").state.values()
        for t in state.values()
        if torch.is_tensor(t)
    ]
    known = [*model.parameters(), *model.buffers(), *states]
    fixed = sum(_bytes(p) for p in model.recommender.parameters()) + sum(map(_bytes, states))
    loader = prefix_loader(train._dataset, config["code_length"], 0, bucketed=False)
    for name, kind, batch in (
        ("step of whole sequences", engine, largest),
        ("step of 512 random prefixes", as_first_design(engine), next(iter(loader))[0]),
    ):
        peak = fixed + peak_of(lambda kind=kind, batch=batch: kind.step([batch], STAGE), known)
        yield _row(f"memory, {name}", peak, fixed + must_keep(model.recommender, batch))
    model.eval()
    yield from ranking_memory(model.recommender, config)


@torch.no_grad()
def ranking_memory(recommender: Recommender, config: Config) -> Iterator[dict]:
    """A batch of beams in a large catalogue, and the making of its code table and trie."""
    codes = random_codes(MANY_ITEMS + 1)
    users, history = config["eval_batch_size"], config["MAX_ITEM_LIST_LENGTH"]
    items = torch.randint(1, MANY_ITEMS, (users, history))
    encoded = recommender.encode_history(codes(items), items > 0)
    cache = sum(map(_bytes, cached_tensors(encoded.cache)))
    cache += cache * config["num_beams"] * (codes.trie.depth - 1) // (history * codes.trie.depth)
    peak = peak_of(
        lambda: beams_of(recommender, codes, items, config["num_beams"]), recommender.parameters()
    )
    yield _row("memory, beams of a batch, 1M items (a cache must be)", peak, cache)
    scores = users * (MANY_ITEMS + 1) * 4
    yield _row("memory, the same beside scores [users x items]", peak, scores)
    semantic = codes.table[1:, :-1].flip(0).contiguous()
    known = [codes.table, semantic]
    peak = peak_of(lambda: codes.rebuild(semantic), known) + _bytes(codes.table)
    held = sum(
        _bytes(t)
        for value in vars(codes.trie).values()
        for t in (value if isinstance(value, list) else [value])
        if torch.is_tensor(t)
    )
    row = _row("memory, code table and trie of 1M items", peak, held + _bytes(codes.table))
    yield {**row, "ratio": row["ours"], "target": 200, "lower": True}


def must_keep(recommender: Recommender, batch: SequenceBatch) -> int:
    """Bytes of a step without which there is no gradient, padding not counted.

    The gradients of all parameters, and of each layer what its matrix products were given: both
    normalised inputs, queries, keys, values, what attention gives, and three of the MLP.
    """
    config, embedding = recommender.backbone.config, recommender.code_embedding
    tokens = batch.step_items * (len(embedding.codebooks) + 1)
    layer = 6 * config.hidden_size + 3 * config.intermediate_size
    logits = batch.step_targets * (len(embedding.codebooks) + 1) * embedding.code_num
    gradients = sum(p.numel() for p in recommender.parameters())
    return 4 * (tokens * layer * config.num_hidden_layers + logits + gradients)


def peak_of(work: Callable[[], object], known) -> int:
    """The most bytes alive at once of what some work makes."""
    with AliveBytes(iter(known), on_gpu=False) as alive:
        work()
    return alive.peak


def _row(name: str, peak: int, needed: int) -> dict:
    return {
        "row": name,
        "ours": peak / MIB,
        "other": needed / MIB,
        "unit": "MiB",
        "ratio": peak / needed,
    }


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
