"""Which layers can be computed in part: structures ask before they choose weights, the executor before it replaces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lt_lightning.pruning.layers import why_not_plain
from lt_lightning.structures.plan import Block

# Multiples that both of PyTorch's 2:4 kernels (CUTLASS, cuSPARSELt) take in half precision.
ROWS, COLUMNS = 32, 64


def why_irreplaceable(network: nn.Module, name: str) -> str:
    """Return why no other module can stand in a layer's place; empty if one can.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> net[1].weight = net[0].weight
    >>> why_irreplaceable(net, "1")
    'its weight is 0.weight, too'
    """
    if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
        return "an attention computes with its matrices itself"
    module = network.get_submodule(name)
    if why := why_not_plain(module):
        return why
    prefix = f"{name}." if name else ""
    own = {parameter: part for part, parameter in module.named_parameters(recurse=False)}
    for other, parameter in network.named_parameters(remove_duplicate=False):
        if parameter in own and other != prefix + own[parameter]:
            return f"its {own[parameter]} is {other}, too"
    return ""


def why_no_blocks(network: nn.Module, name: str) -> str:
    """Return why blocks of a layer cannot be computed, whichever they are; empty if they can."""
    if why := why_irreplaceable(network, name):
        return why
    match network.get_submodule(name):
        case nn.Linear():
            return ""
        case nn.Conv2d() as conv:
            return why_not_in_blocks(conv)
        case module:
            return f"{type(module).__name__}: only 2-D convolutions and linear layers are computed in blocks"


def why_not_in_blocks(conv: nn.Conv2d) -> str:
    """Return which argument of a 2-D convolution keeps it from being computed in blocks; empty if none does.

    >>> why_not_in_blocks(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    "padding_mode='circular': must be 'zeros' to be computed in blocks"
    """
    if conv.groups > 1:
        return f"groups={conv.groups}: the filters of a grouped convolution share no inputs"
    if conv.padding_mode != "zeros":
        return f"padding_mode={conv.padding_mode!r}: must be 'zeros' to be computed in blocks"
    spans = [distance * (size - 1) for distance, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same" and any(span % 2 for span in spans):
        return f"padding='same' with kernel_size={conv.kernel_size} pads unevenly: sizes must be odd"
    return ""


def why_not_held(blocks: Sequence[Block], filters: int) -> str:
    """Return why no format can hold the blocks of a layer with so many filters; empty if one can.

    >>> one, other = (Block(torch.tensor(rows), torch.tensor([0])) for rows in ([0, 1], [1, 2]))
    >>> why_not_held([one, other], filters=4)
    'blocks share filters: every filter must be in one block'
    """
    sizes = sorted({len(block.rows) for block in blocks})
    if len(sizes) != 1 or sizes[0] == 0:
        return f"blocks of {sizes} filters: must be of one size, at least one"
    rows = torch.cat([block.rows for block in blocks])
    if len(set(rows.tolist())) < len(rows):
        return "blocks share filters: every filter must be in one block"
    if (filters - len(rows)) % sizes[0]:
        return f"{filters - len(rows)} of {filters} filters are in no block: must be a multiple of {sizes[0]}"
    return ""


def computes_two_of_four(network: nn.Module, name: str) -> bool:
    """Return whether a layer can be computed from two of each four consecutive inputs, where hardware has that."""
    if why_irreplaceable(network, name):
        return False
    match network.get_submodule(name):
        case nn.Linear(weight=weight) | nn.Conv2d(kernel_size=(1, 1), padding=(0, 0), groups=1, weight=weight):
            return bool(weight.shape[0] % ROWS == 0 and weight.shape[1] % COLUMNS == 0)
        case _:
            return False
