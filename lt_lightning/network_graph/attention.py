"""PyTorch's multi-head attention with fewer heads, which its own class cannot have: it ties heads to the embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keep_heads(module: nn.MultiheadAttention, rows: Tensor | None) -> None:
    """Let an attention whose matrices were cut already compute the heads that are left.

    Args:
        module: the attention, changed in place.
        rows: outputs of its first matrix that are left: whole heads of queries, keys and values; None for all.
    """
    width = module.embed_dim // module.num_heads
    kept = torch.arange(module.embed_dim) if rows is None else rows[rows < module.embed_dim]
    heads = torch.unique(kept // width)
    module.__class__ = FewerHeads
    module.register_buffer("heads", heads.to(module.in_proj_weight.device), persistent=False)
    module.head_width = width


class FewerHeads(nn.MultiheadAttention):
    """Multi-head attention of some of its heads; called as PyTorch's is, with the same result.

    The weights that it returns beside the result are those of the heads that are left. A network that uses them keeps
    all heads.

    Attributes:
        heads: numbers of the heads that are left, (heads left,).
        head_width: number of channels of a head.
    """

    heads: Tensor
    head_width: int

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see `torch.nn.MultiheadAttention.forward` for shapes."""
        batched = query.dim() == 3
        given = [each if batched else each.unsqueeze(0 if self.batch_first else 1) for each in (query, key, value)]
        if not self.batch_first:
            given = [each.transpose(0, 1) for each in given]
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(each, weight, bias).view(*each.shape[:2], -1, self.head_width).transpose(1, 2)
            for each, weight, bias in zip(given, self.in_proj_weight.chunk(3), biases, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        share = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) * self.head_width**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            mixed = F.dropout(weights, share, self.training) @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, share)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        out = out if self.batch_first else out.transpose(0, 1)
        return (out if batched else out.squeeze(0 if self.batch_first else 1)), weights

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Return what is added to the scores, (batch or 1, heads or 1, queries, keys); None if nothing is."""
        mask: Tensor | None = None
        if attention is not None:
            mask = _added(attention, q)
            if mask.dim() == 3:  # one for each sample and head
                mask = mask.view(len(q), -1, *mask.shape[1:]).index_select(1, self.heads)
        if padding is not None:
            of_padding = _added(padding, q).reshape(len(q), 1, 1, -1)
            mask = of_padding if mask is None else mask + of_padding
        return mask


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as it is added: minus infinity where a mask of flags says so."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)
