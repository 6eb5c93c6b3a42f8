"""What FSDP has to be told of the recommender, whose backbone it shards."""

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from recbole_etegrec.recommender import Recommender
from recbole_etegrec.tokenizer import ItemCodes


def keep_whole(plugin: FullyShardedDataParallelPlugin, recommender: Recommender) -> None:
    """Have FSDP leave alone what ranking and code updates read outside `forward`; it is small."""
    plugin.ignored_modules = recommender.heads
    plugin.cpu_ram_efficient_loading = False  # it would replace those very parameters
    if plugin.mixed_precision_policy is not None:
        # Gradients are summed in fp32. Layers are given, and give, the type in which they compute:
        # before 2.13 torch casts what a layer is given, but not when a checkpoint runs it anew.
        computes = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=computes, reduce_dtype=torch.float32
        )
        recommender.residual_dtype = computes


def settle_types(recommender: FSDPModule, codes: ItemCodes) -> None:
    """Have shards settle the types of their gradients while they know what will train.

    They do so in their first pass. It would belong to a stage in which the recommender is frozen,
    and gradients would then stay in the type of the pass.
    """
    items = torch.ones(1, 2, dtype=torch.long, device=codes.table.device)
    with torch.no_grad():
        recommender(codes(items), items[0, :1] - 1, items=items)
    recommender.reshard()  # else what is in no layer waits for a backward pass
