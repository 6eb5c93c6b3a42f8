"""Fast paths against slow ones on a device, in fp32 and in bf16, on small models.

A check returns the difference that it measured, the most that it may be, and whether it passed.
In bf16 eight bits of a number count, so states differ by some .5 % after a few layers, and scores,
of which 8 to 20 nats are usual, by some hundredths.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from recbole_etegrec.decoding import ExactScores, beam_search, score_items
from recbole_etegrec.losses import recommendation_loss
from recbole_etegrec.recommender import BACKBONES, CodeEmbedding, Recommender
from recbole_etegrec.recommender.backbone import checkpoint_activations
from recbole_etegrec.recommender.base_model import add_lora
from recbole_etegrec.tokenizer import ItemCodes
from tests.benchmarks.first_design import generate_uncached, left_padded

N_ITEMS, LEVELS, CODES, USERS, LONGEST = 300, 4, 64, 4, 12
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.15}  # nats


def _recommender(device: torch.device, attention: str = "sdpa") -> Recommender:
    """Four layers with heads as wide as Llama-2's, the same weights each time."""
    torch.manual_seed(3)
    backbone = BACKBONES["llama"](
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=256,
        init_std=0.05,
        attn_implementation=attention,
    )
    embedding = CodeEmbedding(
        code_length=LEVELS,
        code_num=CODES,
        e_dim=32,
        hidden_size=256,
        init_std=0.1,  # logits deviate by some 1
        train_codebooks=True,
    )
    recommender = Recommender(
        backbone,
        embedding,
        semantic_hidden_size=32,
        dropout=0.0,
        alignment_pooling="last",
        init_std=0.05,
    )
    return recommender.to(device).eval()


def _codes(device: torch.device) -> ItemCodes:
    codes = ItemCodes(n_items=N_ITEMS + 1, code_length=LEVELS, code_num=CODES)
    generator = torch.Generator().manual_seed(0)
    codes.rebuild(torch.randint(12, (N_ITEMS, LEVELS - 1), generator=generator))
    return codes.to(device)


def _histories(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded items ``[B, T]`` and their number ``[B]``, from one to the most."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(1, LONGEST, USERS).long()
    items = torch.randint(1, N_ITEMS + 1, (USERS, LONGEST), generator=generator)
    items = items.where(torch.arange(LONGEST) < lengths.unsqueeze(1), 0)
    return items.to(device), lengths.to(device)


@contextmanager
def _precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def _differ(found: torch.Tensor, expected: torch.Tensor, most: float) -> dict:
    error = float((found.float() - expected.float()).abs().max())
    return {"passed": error <= most, "differ_by": error, "at_most": most}


def beam_is_exact(dtype: torch.dtype, device: torch.device) -> dict:
    """A beam as wide as the catalogue against the exact ranking."""
    recommender, codes, (items, _) = _recommender(device), _codes(device), _histories(device)
    with _precision(device, dtype):
        history = recommender.encode_history(codes(items), items > 0)
        exact = ExactScores(recommender, codes.trie)(history)
        ranking = beam_search(recommender, codes.trie, history, N_ITEMS)
    return _differ(ranking.scores, exact.gather(1, ranking.items), TOLERANCE[dtype])


def cache_changes_nothing(dtype: torch.dtype, device: torch.device) -> dict:
    """20 beams behind a shared cache against beams that run their histories again."""
    recommender, codes = _recommender(device), _codes(device)
    items, lengths = _histories(device)
    with _precision(device, dtype):
        history = recommender.encode_history(codes(items), items > 0)
        fast = beam_search(recommender, codes.trie, history, 20)
        slow = generate_uncached(recommender, codes, left_padded(items, lengths), 20)
    return _differ(fast.scores, slow.scores, TOLERANCE[dtype])


def candidates_score_as_exact(dtype: torch.dtype, device: torch.device) -> dict:
    """Scores of given items against those of the exact ranking."""
    recommender, codes, (items, _) = _recommender(device), _codes(device), _histories(device)
    candidates = torch.arange(1, 101, device=device).expand(USERS, -1)
    with _precision(device, dtype):
        history = recommender.encode_history(codes(items), items > 0)
        exact = ExactScores(recommender, codes.trie)(history)
        scores = score_items(recommender, history, codes(candidates))
    return _differ(scores, exact.gather(1, candidates), TOLERANCE[dtype])


def whole_is_prefixes(dtype: torch.dtype, device: torch.device) -> dict:
    """Log-probabilities of all items of padded sequences, against a pass for each prefix."""
    recommender, codes = _recommender(device), _codes(device)
    items, lengths = _histories(device)
    slow, index = [], []
    with _precision(device, dtype):
        for row, length in enumerate(lengths.tolist()):
            for seen in range(1, length):
                prefix = items[row : row + 1, : seen + 1]
                slow.append(recommender(codes(prefix), items.new_tensor([seen - 1])).logits)
                index.append(row * (LONGEST - 1) + seen - 1)
        whole = recommender(codes(items), items.new_tensor(index)).logits
    found, expected = whole.log_softmax(-1), torch.cat(slow).log_softmax(-1)
    return _differ(found, expected, TOLERANCE[dtype])


def attention_is_eager(attention: str, dtype: torch.dtype, device: torch.device) -> dict:
    """Kernels that never form the scores of attention against plain products, with gradients."""
    codes, (items, _) = _codes(device), _histories(device)
    index = torch.arange(LONGEST - 1, device=device) + (USERS - 1) * (LONGEST - 1)
    found = []
    for kind in ("eager", attention):
        recommender = _recommender(device, kind)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = recommender(codes(items), index).logits
        recommendation_loss(logits, codes(items[-1, 1:])).sum().backward()
        weight = recommender.code_embedding.scid_projector.weight.grad
        found.append((logits.detach().log_softmax(-1), weight / weight.norm()))
    most = TOLERANCE[dtype]
    figures = _differ(found[1][0], found[0][0], most)
    gradient = float((found[1][1] - found[0][1]).norm())
    figures["passed"] = figures["passed"] and gradient <= most
    return {**figures, "gradients_differ_by": gradient}


def _adapted(device: torch.device) -> Recommender:
    """The same recommender, its weights frozen in bf16 and adapters beside them."""
    recommender = _recommender(device)
    backbone = add_lora(
        recommender.backbone.to(torch.bfloat16),
        r=8,
        alpha=16,
        dropout=0.0,
        target_modules=["q_proj", "v_proj"],
    )
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:  # which starts as zeros, and lets no gradient through
                torch.nn.init.normal_(parameter, std=0.02)
    recommender.backbone, recommender.residual_dtype = backbone, torch.bfloat16
    return recommender.train()


def _losses(recommender: Recommender, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    codes, (items, lengths) = _codes(device), _histories(device)
    position = torch.arange(LONGEST - 1, device=device)
    index = (position < (lengths - 1).unsqueeze(1)).flatten().nonzero().squeeze(1)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = recommender(codes(items), index)
    loss = recommendation_loss(output.logits, codes(items[:, 1:].flatten()[index]))
    latents = output.sequence_latent.float().square().mean()
    latents = latents + output.preference_latent.float().square().mean()
    return torch.stack([loss.mean(), latents])


def losses_are_as_in_fp32(device: torch.device) -> dict:
    """Relative difference of the loss and of the states that alignment reads."""
    with torch.no_grad():
        full = _losses(_recommender(device), device, torch.float32)
        half = _losses(_recommender(device), device, torch.bfloat16)
    return _differ(half / full, torch.ones_like(full), 0.02)


def step_is_finite(device: torch.device) -> dict:
    """A gradient for all that learns in a bf16 step with adapters, and for nothing else."""
    recommender = _adapted(device)
    _losses(recommender, device, torch.bfloat16).sum().backward()
    wrong = [
        name
        for name, p in recommender.named_parameters()
        if (p.grad is not None) != p.requires_grad
        or (p.grad is not None and not (p.grad.isfinite().all() and p.grad.any()))
    ]
    return {"passed": not wrong, "wrong": len(wrong), "first": wrong[0] if wrong else None}


def checkpointing_changes_nothing(device: torch.device) -> dict:
    """The gradient with activations kept and computed anew, relative to its norm."""
    gradients = []
    for on in (False, True):
        recommender = _adapted(device)
        checkpoint_activations(recommender.backbone, on)
        _losses(recommender, device, torch.bfloat16).sum().backward()
        learn = (p.grad.flatten() for p in recommender.parameters() if p.grad is not None)
        gradients.append(torch.cat(list(learn)))
    kept, anew = gradients
    return _differ((anew - kept).norm() / kept.norm(), torch.zeros_like(kept[0]), 1e-3)


def _in_both(name: str, check: Callable) -> dict[str, Callable]:
    return {
        f"{name}, fp32": partial(check, torch.float32),
        f"{name}, bf16": partial(check, torch.bfloat16),
    }


CHECKS: dict[str, Callable[[torch.device], dict]] = {
    **_in_both("beams are the exact ranking", beam_is_exact),
    **_in_both("beams are the same without cache", cache_changes_nothing),
    **_in_both("candidates score as in the exact ranking", candidates_score_as_exact),
    **_in_both("sequences are all their prefixes", whole_is_prefixes),
    **_in_both("attention: sdpa is eager", partial(attention_is_eager, "sdpa")),
    "losses in bf16 are those in fp32": losses_are_as_in_fp32,
    "gradients in bf16 are finite, and everywhere": step_is_finite,
    "checkpointing changes no gradient": checkpointing_changes_nothing,
}
