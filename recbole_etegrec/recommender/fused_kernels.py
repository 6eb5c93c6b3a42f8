"""Fewer kernels for what stands between the matrix products of LLaMA's layers, on GPUs.

Norms, positions and the MLP's gate read and write each number many times where PyTorch computes
them step by step. They stay the same modules with the same weights; on the CPU nothing changes.
"""

import sys
from collections.abc import Callable
from types import MethodType, ModuleType

import torch
from torch import nn
from transformers import PreTrainedModel

from recbole_etegrec.errors import UserError

_ALIKE = ("llama", "mistral", "qwen2", "qwen3", "smollm3")  # whose norms and MLPs are LLaMA's


def use_liger(decoder: PreTrainedModel) -> None:
    """Triton kernels of liger-kernel (arXiv 2410.10989) for RMSNorm, RoPE and SwiGLU."""
    import liger_kernel.transformers.functional as kernels

    def norm(module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        if not _on_gpu(hidden):
            return type(module).forward(module, hidden)
        return kernels.liger_rms_norm(hidden, module.weight, module.variance_epsilon)

    def mlp(module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        if not _on_gpu(hidden):
            return type(module).forward(module, hidden)
        gated = kernels.liger_swiglu(module.gate_proj(hidden), module.up_proj(hidden))
        return module.down_proj(gated)

    norms, mlps = _parts(decoder)
    for module in norms:
        module.forward = MethodType(norm, module)
    for module in mlps:
        module.forward = MethodType(mlp, module)
    _turn_by(kernels.liger_rope, sys.modules[type(decoder.layers[0].self_attn).__module__])


def compile_parts(decoder: PreTrainedModel) -> None:
    """The same by torch.compile, but for RoPE; the first steps take longer."""
    for modules in _parts(decoder):
        plain = type(modules[0]).forward
        compiled = torch.compile(plain, dynamic=True)

        def forward(module, hidden, plain=plain, compiled=compiled) -> torch.Tensor:
            return (compiled if _on_gpu(hidden) else plain)(module, hidden)

        for module in modules:
            module.forward = MethodType(forward, module)


FUSED_KERNELS: dict[str, Callable[[PreTrainedModel], None]] = {
    "liger": use_liger,
    "compile": compile_parts,
}


def fuse(backbone: nn.Module, name: str) -> None:
    """Let the layers of a backbone, adapters and all, be computed as a name says.

    Raises:
        UserError: they are not LLaMA's.
    """
    decoder = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone
    kind, activation = decoder.config.model_type, getattr(decoder.config, "hidden_act", None)
    if kind not in _ALIKE or activation != "silu":
        raise UserError(
            f"fused_kernels ({name}): the layers of {type(decoder).__name__} are not LLaMA's; "
            "leave it out"
        )
    FUSED_KERNELS[name](decoder)


def _parts(decoder: PreTrainedModel) -> tuple[list[nn.Module], list[nn.Module]]:
    """The norms of hidden states, and the MLPs."""
    norms = [decoder.norm]
    for layer in decoder.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    return norms, [layer.mlp for layer in decoder.layers]


def _turn_by(kernel: Callable, module: ModuleType) -> None:
    """Have the attention of an architecture turn queries and keys by a kernel on GPUs."""
    plain = module.apply_rotary_pos_emb
    if getattr(plain, "is_fused", False):
        return

    def turn(q, k, cos, sin, unsqueeze_dim=1):
        if not _on_gpu(q):
            return plain(q, k, cos, sin, unsqueeze_dim)
        return kernel(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)

    turn.is_fused = True
    module.apply_rotary_pos_emb = turn


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda
