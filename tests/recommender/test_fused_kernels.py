"""Layers by fewer kernels: the same numbers, from kernels that a CPU has in their place."""

import sys
from copy import deepcopy
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3Model
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from recbole_etegrec.errors import UserError
from recbole_etegrec.recommender import BACKBONES, fused_kernels
from recbole_etegrec.recommender.base_model import add_lora
from recbole_etegrec.recommender.fused_kernels import FUSED_KERNELS, fuse
from recbole_etegrec.runs.checks import check_rules
from tests.helpers import small_config

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What is called of a liger-kernel that computes on the CPU, where all takes place."""
    names: list[str] = []

    def rms_norm(x, weight, eps):
        names.append("norm")
        return F.rms_norm(x, weight.shape, weight, eps)

    def swiglu(gate, up):
        names.append("mlp")
        return F.silu(gate) * up

    def rope(q, k, cos, sin, unsqueeze_dim):
        names.append("rope")
        return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)

    kernels = ModuleType("liger_kernel.transformers.functional")
    kernels.liger_rms_norm, kernels.liger_swiglu, kernels.liger_rope = rms_norm, swiglu, rope
    parents = [ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")]
    parents[0].transformers, parents[1].functional = parents[1], kernels
    for module in (*parents, kernels):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fused_kernels, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", apply_rotary_pos_emb)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: _told(function, names))
    return names


def _told(function, names: list[str]):
    def compiled(*arguments):
        names.append(function.__qualname__)
        return function(*arguments)

    return compiled


def small_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 64}
    return BACKBONES["llama"](**sizes, num_hidden_layers=2, num_attention_heads=2, init_std=0.3)


def outcome(model) -> list[torch.Tensor]:
    """States, and the gradients of all that learns."""
    model.zero_grad()
    inputs = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    states = model(inputs_embeds=inputs).last_hidden_state
    states.square().sum().backward()
    return [states.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("name", FUSED_KERNELS)
def test_layers_give_the_same_by_fewer_kernels(name, adapters, calls):
    plain = small_llama()
    names = list(plain.state_dict())
    fused = deepcopy(plain)
    if adapters:
        options = {"r": 2, "dropout": 0.0, "target_modules": ["q_proj", "up_proj"]}
        torch.manual_seed(2)
        plain = add_lora(plain, **options)
        torch.manual_seed(2)
        fused = add_lora(fused, **options)
    fuse(fused, name)
    if not adapters:
        assert list(fused.state_dict()) == names
    for found, expected in zip(outcome(fused), outcome(plain), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    expected = {
        "liger": {"norm": 5, "mlp": 2, "rope": 4},  # the attention of both
        "compile": {"LlamaRMSNorm.forward": 5, "LlamaMLP.forward": 2},
    }
    assert {called: calls.count(called) for called in calls} == expected[name]


@pytest.mark.parametrize("name", FUSED_KERNELS)
def test_copy_of_a_fused_model_has_weights_of_its_own(name, calls):
    fused = small_llama()
    fuse(fused, name)
    expected, other = outcome(fused), deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    torch.testing.assert_close(outcome(other), expected, **CLOSE)


@pytest.mark.parametrize("name", FUSED_KERNELS)
def test_nothing_changes_on_a_cpu(name, calls, monkeypatch):
    monkeypatch.setattr(fused_kernels, "_on_gpu", lambda tensor: tensor.is_cuda)
    model = small_llama()
    expected = outcome(model)
    fuse(model, name)
    torch.testing.assert_close(outcome(model), expected, atol=0, rtol=0)
    assert calls == []


def test_config_names_the_package_when_it_is_missing(tiny_data, monkeypatch):
    config = small_config(tiny_data, fused_kernels="liger")
    check_rules(config)  # on a CPU nothing is asked of it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # cannot be imported
    with pytest.raises(UserError, match="needs the package liger-kernel: pip install"):
        check_rules(config)


def test_config_asks_for_a_compiler_when_there_is_none(tiny_data, monkeypatch):
    config = small_config(tiny_data, fused_kernels="compile")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    check_rules(config)  # on a CPU nothing is asked of it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"fused_kernels \(compile\) needs a C compiler"):
        check_rules(config)
    monkeypatch.setenv("CC", "/usr/bin/gcc")
    check_rules(config)


def test_layers_that_are_not_llamas_are_refused(calls):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    fuse(Qwen3Model(Qwen3Config(**sizes)), "compile")
    other = Qwen3Model(Qwen3Config(**sizes, hidden_act="gelu"))
    with pytest.raises(UserError, match=r"fused_kernels \(liger\): the layers of Qwen3Model"):
        fuse(other, "liger")
