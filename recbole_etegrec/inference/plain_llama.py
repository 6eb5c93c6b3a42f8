"""A trained model as a plain LLaMA of transformers, whose vocabulary is the codes of items.

A row of the embedding is a code as it enters the backbone, a row of the head the same code as it
leaves it: ``scid_projector(e)`` and ``output_projector^T e``. Where vectors of items enter at the
last code, each item has a token that is both, for histories alone. So the decoder ranks as
``ranking: beam`` does; an item head proposes and scores nothing here.
"""

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from recbole_etegrec.errors import UserError
from recbole_etegrec.inference import code_logits
from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.model import ETEGRecLlama

PADDING = "<pad>"


def write_plain_llama(folder: Path, model: ETEGRecLlama, catalogue: Catalogue) -> None:
    """Write weights, tokenizer, the items, and what generates items with them.

    Raises:
        UserError: the backbone is no decoder that transformers has a language model of.
    """
    plain = plain_llama(model)
    plain.save_pretrained(folder)
    _tokenizer(model, len(catalogue)).save_pretrained(folder)
    gone = {0, *model.codes.left_out.tolist()}
    codes = [None if n in gone else row for n, row in enumerate(model.codes.table.tolist())]
    values = {
        "tokens": catalogue.tokens,
        "titles": catalogue.titles,
        "codes": codes,
        "code_num": model.codes.code_num,
        "reads_items": _reads_items(model),
        "max_history": model.max_history,
    }
    (folder / "items.json").write_text(json.dumps(values, ensure_ascii=False) + "\n", "utf-8")
    shutil.copy(code_logits.__file__, folder / "code_logits.py")


def _reads_items(model: ETEGRecLlama) -> bool:
    head = model.recommender.item_head
    return head is not None and head.enter is not None


@torch.no_grad()
def plain_llama(model: ETEGRecLlama) -> PreTrainedModel:
    """The language model of transformers, its adapters merged and its weights in fp32.

    Raises:
        UserError: see above, or users have codes.
    """
    if model.codes.users is not None:
        raise UserError(
            "format (hf): user_codes are made of item embeddings, which a plain LLaMA has not: "
            "export without a format"
        )
    backbone, embedding = model.recommender.backbone, model.recommender.code_embedding
    rows, head = _rows(model)
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    config.vocab_size, config.tie_word_embeddings, config.pad_token_id = len(rows), False, 0
    config.bos_token_id = config.eos_token_id = None
    try:
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except ValueError as error:
        kind = type(backbone).__name__
        raise UserError(f"format (hf): {kind} is no decoder: export without a format") from error
    weights = {name: value.float() for name, value in backbone.state_dict().items()}
    weights["embed_tokens.weight"] = rows
    missing, unknown = plain.base_model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("inv_freq")]
    if missing or unknown:
        raise UserError(f"format (hf): the decoder has other weights ({(missing + unknown)[0]})")
    plain.lm_head.weight.copy_(head.to(embedding.codebooks.device))
    plain.generation_config.update(bos_token_id=None, eos_token_id=None, pad_token_id=0)
    return plain.eval()


def _rows(model: ETEGRecLlama) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the embedding and of the head ``[V, H]``, on the CPU."""
    embedding, recommender = model.recommender.code_embedding, model.recommender
    tables = embedding.tables().flatten(0, 1).float()  # [L * C, D]
    entering = embedding.scid_projector(tables).float()
    leaving = tables @ embedding.output_projector.weight.float()
    if _reads_items(model):
        last = model.codes(torch.arange(model.n_items, device=tables.device))[:, -1]
        level = (embedding.tables().shape[0] - 1) * embedding.code_num
        vectors = recommender.item_head.all_vectors()
        items = entering[level + last] + recommender.item_head.entry(vectors)
        entering = torch.cat([entering, items])
        leaving = torch.cat([leaving, torch.zeros_like(items)])
    padding = torch.zeros_like(entering[:1])
    return torch.cat([padding, entering]).cpu(), torch.cat([padding, leaving]).cpu()


def _tokenizer(model: ETEGRecLlama, items: int) -> PreTrainedTokenizerFast:
    """Words: ``<c0_17>`` is code 17 of level 0, ``<item_3>`` item 3 of the table."""
    length, count = model.codes.table.shape[1], model.codes.code_num
    words = [PADDING, *(f"<c{level}_{code}>" for level in range(length) for code in range(count))]
    if _reads_items(model):
        words += [f"<item_{number}>" for number in range(items)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PADDING))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PADDING, padding_side="left"
    )
