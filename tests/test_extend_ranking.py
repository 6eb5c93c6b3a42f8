"""Rankers, backbones, tokenizers and item embeddings of a user's own, by their tables alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model

from recbole_etegrec import export_run, load_exported, load_run, recommend, run
from recbole_etegrec.data.item_embedding import ITEM_EMBEDDINGS
from recbole_etegrec.decoding import RANKERS, CodeRanker, Ranking
from recbole_etegrec.errors import UserError
from recbole_etegrec.recommender import BACKBONES
from recbole_etegrec.tokenizer import TOKENIZERS, RQKMeans
from tests.helpers import small_values

pytestmark = pytest.mark.slow  # whole runs


def trained(data: str, run_dir: Path, **values) -> tuple[dict, tuple]:
    """What a tiny run returns, and what `load_run` makes of it."""
    values = {"epochs": 2, "finetune_epochs": 1, "run_dir": str(run_dir), **values}
    outcome = run("ETEGRecLlama", "tiny", config_dict=small_values(data, **values))
    return outcome, load_run(str(run_dir))


class NewestFirst(CodeRanker):
    """Ranks the items by their ids, the highest first; a score is an id."""

    keys = ("num_beams",)

    def __init__(self, *parts, num_beams: int):
        super().__init__(*parts)
        self.num_beams = num_beams

    def best(self, interaction, k, excluded=None):
        scores, items = self.score_all(interaction, excluded).topk(min(k, self.width(k)))
        return Ranking(items.masked_fill(scores.isneginf(), 0), scores)

    def score(self, interaction, items):
        return items.float()

    def score_all(self, interaction, excluded=None):
        rows, items = len(interaction[self.fields.history]), len(self.codes.table)
        scores = torch.arange(items, device=self.codes.table.device).float().repeat(rows, 1)
        scores[:, 0] = -torch.inf
        if excluded is not None:
            scores[self.on_device(excluded)] = -torch.inf
        return scores

    def width(self, k):
        return len(self.codes.table) - 1


def test_run_ranks_by_a_ranker_of_ones_own_when_the_table_has_it(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setitem(RANKERS, "newest_first", NewestFirst)
    values = {"ranking": "newest_first", "num_beams": 1}  # no rule of the beam's concerns it
    outcome, (_, model, dataset, *_, test_data) = trained(tiny_data, tmp_path / "run", **values)
    assert type(model.ranker) is NewestFirst and model.ranker.num_beams == 1
    targets = test_data._dataset.inter_feat["item_id"]
    for k in (5, 10, 20):
        share = float((targets > dataset.item_num - 1 - k).float().mean())
        assert outcome["test_result"][f"recall@{k}"] == round(share, 4)
    found = recommend(model, dataset, [["i3"]], 3)
    assert [r.log_probability for r in found[0]] == [40, 39, 38]
    export_run(str(tmp_path / "run"), str(tmp_path / "out"))
    assert recommend(*load_exported(tmp_path / "out"), [["i3"]], 3) == found
    monkeypatch.delitem(RANKERS, "newest_first")
    with pytest.raises(UserError, match="'newest_first', which is not in RANKERS"):
        load_exported(tmp_path / "out")


def qwen2_from_scratch(*, hidden_size, init_std, head_size, residual_dropout, **sizes):
    """A Qwen2, whose attention has biases."""
    heads = sizes["num_attention_heads"]
    model = Qwen2Model(
        Qwen2Config(vocab_size=1, hidden_size=hidden_size, num_key_value_heads=heads, **sizes)
    )
    model.set_input_embeddings(nn.Identity())
    model.token_rms = init_std
    return model


def test_run_learns_with_a_backbone_of_ones_own_when_the_table_has_it(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setitem(BACKBONES, "qwen2", qwen2_from_scratch)
    outcome, (_, model, dataset, *_) = trained(tiny_data, tmp_path / "run", backbone="qwen2")
    assert isinstance(model.recommender.backbone, Qwen2Model)
    assert model.recommender.backbone.layers[0].self_attn.q_proj.bias.abs().max() > 0
    assert outcome["test_result"]["recall@20"] > 0
    export_run(str(tmp_path / "run"), str(tmp_path / "out"))
    found = [r.item for r in recommend(*load_exported(tmp_path / "out"), [["i3"]])[0]]
    assert found == [r.item for r in recommend(model, dataset, [["i3"]])[0]]


class Turned(RQKMeans):
    """Calls each code by the number after its own."""

    def encode(self, embedding):
        return (super().encode(embedding) + 1) % self.quantizer.codebooks.shape[1]


def test_run_codes_items_by_a_tokenizer_of_ones_own_when_the_table_has_it(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setitem(TOKENIZERS, "turned", Turned)
    values = {"tokenizer": "turned", "codebook_update": "tokenizer_only"}
    _, (_, model, *_) = trained(tiny_data, tmp_path / "run", **values)
    assert type(model.tokenizer) is Turned
    nearest = RQKMeans.encode(model.tokenizer, model.item_embedding[1:])
    assert torch.equal(model.codes.table[1:, :-1], (nearest + 1) % 16)


def test_run_reads_item_embeddings_of_ones_own_when_the_table_has_them(
    tiny_data, tmp_path, monkeypatch
):
    def circle(config, dataset):
        angle = 2 * np.pi * np.arange(dataset.item_num) / dataset.item_num
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    monkeypatch.setitem(ITEM_EMBEDDINGS, "circle", circle)
    for sources, width in (("circle", 2), (["collaborative", "circle"], 12)):
        _, (_, model, *_) = trained(tiny_data, tmp_path / str(width), item_embedding=sources)
        assert model.item_embedding.shape == (41, width)
        radius = model.item_embedding[1:, -2:].norm(dim=1)
        assert radius.min() > 0.9 and radius.max() < 1.6  # of unit mean square in each column
