"""The recommender's whole-sequence pass against one prefix at a time, and its gradients."""

import pytest
import torch
from transformers import T5Model

from recbole_etegrec.losses import recommendation_loss
from recbole_etegrec.recommender import BACKBONES
from recbole_etegrec.recommender.backbone import add_residual_dropout
from tests.helpers import small_recommender

LENGTHS = (2, 5, 9, 12)


def random_codes(rows: int, items: int, length: int = 4, code_num: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + items)
    return torch.randint(code_num, (rows, items, length), generator=generator)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("j", range(4))
@pytest.mark.parametrize("target", [3, 7])
def test_recommender_leaks_no_code_when_the_target_changes(backbone, j, target):
    recommender = small_recommender(backbone)
    codes = random_codes(3, 8)
    altered = codes.clone()
    altered[:, target, j:] = (altered[:, target, j:] + 1 + torch.arange(4 - j)) % 8
    index = torch.arange(3) * 7 + target - 1
    with torch.no_grad():
        before = recommender(codes, index).logits
        after = recommender(altered, index).logits
    assert torch.equal(before[:, : j + 1], after[:, : j + 1])
    for later in range(j + 1, 4):
        assert (before[:, later] - after[:, later]).abs().max(dim=1).values.min() > 1e-3


@pytest.mark.parametrize("backbone", BACKBONES)
def test_recommender_leaks_nothing_when_later_items_change(backbone):
    recommender = small_recommender(backbone, pooling="mean")
    codes = random_codes(3, 8)
    altered = codes.clone()
    altered[:, 5:] = (altered[:, 5:] + 1) % 8
    index = torch.tensor([[row * 7 + t for t in range(4)] for row in range(3)]).flatten()
    with torch.no_grad():
        for before, after in zip(
            recommender(codes, index)[:3], recommender(altered, index)[:3], strict=True
        ):
            assert torch.equal(before, after)


def padded_batch() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Codes of sequences of LENGTHS items, what is no padding, and the sequences on their own."""
    full = random_codes(len(LENGTHS), max(LENGTHS))
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    sequences = [full[row, :length] for row, length in enumerate(LENGTHS)]
    return full * real.unsqueeze(2), real, sequences


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_recommender_equals_prefix_by_prefix_when_sequences_are_whole(backbone, pooling):
    recommender = small_recommender(backbone, pooling=pooling)
    codes, _, sequences = padded_batch()
    width = codes.shape[1]
    # Row, and item before the target.
    places = [(row, t) for row, length in enumerate(LENGTHS) for t in range(length - 1)]
    index = torch.tensor([row * (width - 1) + t for row, t in places])
    with torch.no_grad():
        whole = recommender(codes, index)
        for n, (row, t) in enumerate(places):
            prefix = sequences[row][None, : t + 2]
            alone = recommender(prefix, torch.tensor([t]))
            for one, many in zip(alone[:3], whole[:3], strict=True):
                torch.testing.assert_close(many[n : n + 1], one, atol=1e-5, rtol=0)


def test_recommender_reads_the_last_token_or_the_mean_when_pooling_says_so():
    codes, index = random_codes(1, 4), torch.tensor([1])
    outputs = {}
    for pooling in ("last", "mean"):
        recommender = small_recommender(pooling=pooling)
        tokens = recommender.code_embedding.embed(codes).flatten(1, 2)
        with torch.no_grad():
            hidden = recommender.backbone(inputs_embeds=tokens[:, :8]).last_hidden_state
            state = hidden[:, -1] if pooling == "last" else hidden.mean(dim=1)
            outputs[pooling] = recommender(codes, index)
            expected = recommender.enc_adapter(state), recommender.dec_adapter(state)
        found = outputs[pooling].sequence_latent, outputs[pooling].preference_latent
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(outputs["last"].logits, outputs["mean"].logits)


def test_encoder_decoder_equals_stock_t5_when_distances_are_its_relative_positions():
    recommender = small_recommender("t5")
    backbone, own = recommender.backbone, recommender.decoder_tokens
    stock = T5Model(backbone.config).eval()
    missing = stock.load_state_dict(backbone.state_dict(), strict=False).missing_keys
    table = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert {key for key in missing if "embed_tokens" not in key and key != "shared.weight"} == {
        table
    }
    codes, target, width = random_codes(3, 6), 3, 5
    with torch.no_grad():
        stock.get_parameter(table)[:4] = own.distance_bias
        embed = recommender.code_embedding.embed
        tokens = torch.cat([own.start.expand(3, 1, -1), embed(codes[:, target, :-1])], dim=1)
        expected = stock(
            inputs_embeds=embed(codes[:, :target]).flatten(1, 2), decoder_inputs_embeds=tokens
        )
        found = recommender(codes, torch.arange(3) * width + target - 1)
        close = {"atol": 1e-5, "rtol": 0}
        states = expected.last_hidden_state
        logits = recommender.code_embedding.logits(states)
        torch.testing.assert_close(found.logits, logits, **close)
        mean = expected.encoder_last_hidden_state.mean(dim=1)
        torch.testing.assert_close(found.sequence_latent, recommender.enc_adapter(mean), **close)
        preference = recommender.dec_adapter(states[:, 0])
        torch.testing.assert_close(found.preference_latent, preference, **close)


def test_encode_history_gives_the_last_state_when_padded():
    recommender = small_recommender()
    codes, real, sequences = padded_batch()
    with torch.no_grad():
        history = recommender.encode_history(codes, real)
        for row, sequence in enumerate(sequences):
            tokens = recommender.code_embedding.embed(sequence[None]).flatten(1, 2)
            state = recommender.backbone(inputs_embeds=tokens).last_hidden_state[0, -1]
            torch.testing.assert_close(history.state[row], state, atol=1e-5, rtol=0)
    assert history.length.tolist() == [4 * length for length in LENGTHS]


def backward(recommender, *, adapters: bool) -> None:
    """One backward pass of L_REC, and of the latents where `adapters`."""
    codes, real, _ = padded_batch()
    index = torch.nonzero(real[:, 1:].flatten()).squeeze(1)
    output = recommender(codes, index)
    loss = recommendation_loss(output.logits, codes[:, 1:].flatten(0, 1)[index]).mean()
    if adapters:
        loss = loss + output.sequence_latent.square().sum() + output.preference_latent.sum()
    loss.backward()


def gradients(recommender) -> dict[str, bool]:
    """Whether each parameter has a gradient that is not zero."""
    return {
        name: p.grad is not None and bool(p.grad.abs().max() > 0)
        for name, p in recommender.named_parameters()
    }


@pytest.mark.parametrize("backbone", BACKBONES)
def test_recommender_gets_every_gradient_but_the_adapters_when_l_rec_is_minimised(backbone):
    recommender = small_recommender(backbone)
    backward(recommender, adapters=False)
    found = gradients(recommender)
    assert {name for name, has in found.items() if not has} == {
        name for name in found if "_adapter" in name
    }
    table = recommender.code_embedding
    assert (table.codebooks.grad.abs().amax(dim=-1) > 0).all()
    assert (table.collision_table.grad.abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_recommender_gets_every_gradient_when_latents_are_used(backbone):
    recommender = small_recommender(backbone)
    backward(recommender, adapters=True)
    assert all(gradients(recommender).values())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_recommender_keeps_codebooks_from_gradients_when_only_the_tokenizer_moves_them(backbone):
    recommender = small_recommender(backbone, train_codebooks=False)
    backward(recommender, adapters=True)
    assert [name for name, has in gradients(recommender).items() if not has] == [
        "code_embedding.codebooks"
    ]


def test_code_embedding_ties_both_ends_to_one_table_when_a_row_changes():
    embedding = small_recommender().code_embedding
    codes = torch.tensor([[1, 2, 3, 4]])
    hidden = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    tables = [*embedding.codebooks, embedding.collision_table[0]]
    with torch.no_grad():
        rows = torch.stack([table[code] for table, code in zip(tables, codes[0], strict=True)])
        expected = rows @ embedding.scid_projector.weight.T
        torch.testing.assert_close(embedding.embed(codes)[0], expected)
        query = hidden[0] @ embedding.output_projector.weight.T
        expected = torch.stack([table @ q for table, q in zip(tables, query, strict=True)])
        torch.testing.assert_close(embedding.logits(hidden)[0], expected)
        one_level = embedding.logits(hidden[:, 2:3], slice(2, 3))
        torch.testing.assert_close(one_level[0, 0], expected[2])
        torch.testing.assert_close(embedding.embed(codes[:, 2:], 2), embedding.embed(codes)[:, 2:])


def test_code_embedding_gives_logits_in_fp32_when_autocast_is_on():
    embedding = small_recommender().code_embedding
    hidden = torch.randn(50, 4, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = embedding.logits(hidden)
        query = embedding.output_projector(hidden).float()
    assert logits.dtype == torch.float32
    tables = embedding.tables()
    expected = (query.unsqueeze(-2) * tables).sum(-1)  # no product of matrices, so no autocast
    torch.testing.assert_close(logits, expected.detach(), atol=1e-5, rtol=0)


def test_recommender_holds_no_token_table_when_built():
    recommender = small_recommender()
    assert not [name for name, _ in recommender.named_parameters() if "embed_tokens" in name]
    assert not list(recommender.backbone.get_input_embeddings().parameters())


def test_recommender_starts_from_the_given_spread_when_built():
    recommender = small_recommender()
    for name, parameter in recommender.named_parameters():
        if parameter.ndim >= 2:
            assert parameter.std().item() == pytest.approx(0.3, rel=0.2), name


def test_residual_dropout_drops_what_blocks_add_when_training():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone = BACKBONES["llama"](
        **sizes,
        intermediate_size=32,
        max_position_embeddings=64,
        init_std=0.3,
    )
    tokens = torch.randn(2, 6, 16)
    plain = backbone.eval()(inputs_embeds=tokens).last_hidden_state
    add_residual_dropout(backbone, 1.0)
    assert torch.equal(backbone(inputs_embeds=tokens).last_hidden_state, plain)
    dropped = backbone.train()(inputs_embeds=tokens).last_hidden_state
    torch.testing.assert_close(dropped, backbone.norm(tokens))
