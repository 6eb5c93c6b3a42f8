"""How fast the decoder ranks, beside the device's limits and beams that run histories again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recbole_etegrec.config import Config
from recbole_etegrec.preflight.memory_plan import GIB
from recbole_etegrec.recommender import autocast
from recbole_etegrec.recommender.backbone import cached_tensors
from tests.benchmarks.first_design import generate_uncached, left_padded
from tests.benchmarks.flops import linear_parameters
from tests.benchmarks.gpu.bench import LARGE_CARD, SMALL_CARD, Bench
from tests.benchmarks.gpu.few import REQUEST_SECONDS, STEP_SECONDS, few_users
from tests.benchmarks.gpu.measure import (
    limit_memory,
    now,
    peak_gib,
    reset_peak,
)


def decode(bench: Bench) -> None:
    """Users a second with 20 beams: of the longest histories, of all sorts, and of like ones."""
    bench.engine.freeze_all_but("recommender")  # a run evaluates beside its optimizers
    bench.model.ranker.records = False  # a step inside a recording cannot be timed; `few` has those
    small, large = (bench.config(overlay) for overlay in (SMALL_CARD, LARGE_CARD))
    for kind in ("longest", "mixed"):
        for users in (1, 4):
            name = f"{users} users, {kind}"
            bench.measure("decode", name, lambda k=kind, n=users: rank(bench, k, n))
        for config in (small, large):
            name = f"{config['eval_batch_size']} users, {kind}"
            bench.measure("decode", name, lambda c=config, k=kind: rank_as(bench, c, k))
        bench.measure("decode", f"4 users run again, {kind}", lambda k=kind: rerun(bench, k, 4))
    users = large["eval_batch_size"]
    bench.measure("decode", f"{users} users, alike", lambda: rank(bench, "alike", users))


def few(bench: Bench) -> None:
    """Few users: what a request and a step take, adapters merged as `serve` has them."""
    bench.engine.freeze_all_but("recommender")
    bench.model.recommender.backbone.merge_adapter()
    for users in (1, 2, 4, 8, 32):

        def work(users: int = users) -> dict:
            figures = few_users(bench.model, _histories(bench, "longest", users), bench.steps(20))
            figures["step_to_read"] = figures.pop("read_bytes") / bench.copy_rate
            passed = figures["step_recorded"] <= STEP_SECONDS or users > 8
            if users == 1:
                passed &= figures["request_recorded"] <= REQUEST_SECONDS
            return {**figures, "passed": passed}

        bench.measure("few", f"{users} users, longest", work)
    bench.model.recommender.backbone.unmerge_adapter()


def rank_as(bench: Bench, config: Config, kind: str) -> dict:
    """An evaluation batch of a configuration; of the longest histories also what is planned."""
    figures = rank(bench, kind, config["eval_batch_size"], config["memory_gib"])
    if kind == "longest":
        figures["plan_gib"] = bench.plan_of(config).evaluation.total / GIB
    return figures


def _histories(bench: Bench, kind: str, users: int):
    """Test users with the ``longest`` histories, of all sorts (``mixed``), or near the median."""
    dataset = bench.loaders(bench.base)[2]._dataset
    length = dataset.inter_feat[dataset.item_list_length_field]
    if kind == "mixed":
        chosen = torch.linspace(0, len(length) - 1, users).long()
    else:
        first = 0 if kind == "longest" else max(len(length) - users, 0) // 2
        chosen = length.argsort(descending=True)[first : first + users]
    return dataset[chosen].to(bench.device)


@torch.no_grad()
def rank(bench: Bench, kind: str, users: int, memory_gib: float | None = None) -> dict:
    """Rank with 20 beams, and compare each step with what the device can do at best.

    A step reads all weights and all of the cache once, and multiplies each of the former with
    each new token: it cannot take less than the one at the measured rate of copies, nor than the
    other at the measured rate of products.
    """
    model, device = bench.model.eval(), bench.device
    rows, ranker = _histories(bench, kind, users), model.ranker
    limit_memory(device, memory_gib)
    frozen, learning = linear_parameters(model.recommender.backbone)
    weights = sum(p.numel() * p.element_size() for p in model.recommender.backbone.parameters())
    with autocast(bench.base["precision"], bench.device.type):
        ranker.score_all(rows)
        reset_peak(device)
        started = now(device)
        ranker.score_all(rows)
        seconds, peak = now(device) - started, peak_gib(device)
        started = now(device)
        history = ranker.encode(rows)
        encode_seconds = now(device) - started
        reads, times = [], []
        with _extensions_timed(model.recommender, device, reads, times):
            ranker.best(rows, ranker.num_beams)
    by_reading = sum(weights + cache for cache in reads) / bench.copy_rate
    flops = 2 * (frozen + learning) * users * ranker.num_beams * len(reads)
    by_computing = flops / bench.matmul_rate
    return {
        "users_per_second": users / seconds,
        "encode_seconds": encode_seconds,
        "step_seconds": sum(times) / len(times),
        "step_seconds_to_read": by_reading / len(reads),
        "step_seconds_to_compute": by_computing / len(reads),
        "of_the_limit": max(by_reading, by_computing) / sum(times),
        "tokens_a_history": history.visible.shape[1],
        "real_tokens": float(history.visible.float().mean()),
        "peak_gib": peak,
    }


@contextmanager
def _extensions_timed(recommender, device, reads: list, times: list) -> Iterator[None]:
    """Note the seconds of each step of a beam search, and the bytes of cache it reads."""
    extend = recommender.extend

    def timed(history, *arguments):
        started = now(device)
        hidden = extend(history, *arguments)
        times.append(now(device) - started)
        reads.append(sum(t.numel() * t.element_size() for t in cached_tensors(history.cache)))
        return hidden

    recommender.extend = timed
    try:
        yield
    finally:
        del recommender.extend


@torch.no_grad()
def rerun(bench: Bench, kind: str, users: int) -> dict:
    """The same users and beams without a cache."""
    model, rows = bench.model.eval(), _histories(bench, kind, users)
    items = left_padded(rows[model.fields.history], rows[model.fields.length])
    beams = model.ranker.num_beams
    with autocast(bench.base["precision"], bench.device.type):
        for _ in range(2):  # the first warms up
            started = now(bench.device)
            slow = generate_uncached(model.recommender, model.codes, items, beams)
            seconds = now(bench.device) - started
        fast = model.ranker.best(rows, beams)
    figures = {"users_per_second": users / seconds}
    figures["scores_differ_by"] = float((slow.scores - fast.scores).abs().max())
    for batch in (4, *(bench.config(o)["eval_batch_size"] for o in (SMALL_CARD, LARGE_CARD))):
        ours = bench.find("decode", f"{batch} users, {kind}", "users_per_second")
        figures[f"times_slower_than_{batch}"] = ours and ours * seconds / users
    return figures
