"""The vision transformer (Dosovitskiy et al., ICLR 2021): patches of an image as tokens, pre-normalised blocks.

`width` is that of a head: the tokens are `heads` times as wide, so that any width will do. How many heads there are
stands in the sizes of the layers alone, so that heads can be dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.models.common import positive

Pooling = Literal["mean", "token"]


class Attention(nn.Module):
    """Self-attention of several heads, each of `head_width` channels of the queries, keys and values."""

    def __init__(self, width: int, head_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.head_width = head_width
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n, tokens, width) to tokens of the same shape."""
        query, key, value = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.dropout(self.projection(attended.transpose(1, 2).flatten(2)))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """Part channels into heads: (n, heads, tokens, head_width)."""
        return x.view(x.shape[0], x.shape[1], -1, self.head_width).transpose(1, 2)


class StochasticDepth(nn.Module):
    """Drops the branch of a block for some samples of a training batch (Huang et al., ECCV 2016).

    Args:
        rate: probability that a sample goes without the branch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Set samples (n, tokens, width) to zero at random; the others are scaled, so that the mean stays."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.empty(branch.shape[0], 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.rate)
        return branch * kept / (1 - self.rate)


class TransformerBlock(nn.Module):
    """Attention, then a perceptron of one hidden layer, each behind a LayerNorm and added to its input."""

    def __init__(self, width: int, head_width: int, hidden: int, dropout: float = 0.0, depth_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, head_width, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            OrderedDict(
                hidden=nn.Linear(width, hidden),
                gelu=nn.GELU(),
                dropout1=nn.Dropout(dropout),
                output=nn.Linear(hidden, width),
                dropout2=nn.Dropout(dropout),
            )
        )
        self.stochastic_depth = StochasticDepth(depth_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (n, tokens, width) to tokens of the same shape."""
        x = x + self.stochastic_depth(self.attention(self.norm1(x)))
        out: Tensor = x + self.stochastic_depth(self.perceptron(self.norm2(x)))
        return out


class VisionTransformer(nn.Module):
    """Patches, learned positions, blocks, LayerNorm, linear classifier; ViT-B/16 has 86.6 million parameters.

    Args:
        classes: number of outputs.
        channels: number of channels of the image.
        size: height and width of the image.
        patch: height and width of a patch, of which each becomes a token; a divisor of `size`.
        depth: number of blocks.
        heads: number of heads of a block.
        width: number of channels of a head; a token has `heads` times as many.
        expansion: hidden units of a perceptron over the channels of a token.
        pooling: what the classifier reads: the `mean` of all tokens, or a further, learned `token` in front of them.
        dropout: probability of dropout after linear layers (but queries, keys and values) and positions.
        stochastic_depth: probability that a sample goes without a branch of the last block; it rises linearly from 0
            in the first.

    Raises:
        ValueError: if a size is not positive, `patch` does not divide `size`, or a probability is not in [0, 1).

    >>> vit_b16 = VisionTransformer(1000, size=224, patch=16, depth=12, heads=12, width=64, pooling="token")
    >>> sum(p.numel() for p in vit_b16.parameters())
    86567656
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        size: int = 32,
        patch: int = 4,
        depth: int = 6,
        heads: int = 4,
        width: int = 32,
        expansion: int = 4,
        pooling: Pooling = "mean",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        positive(
            classes=classes, channels=channels, size=size, patch=patch, depth=depth, heads=heads, width=width,
            expansion=expansion,
        )  # fmt: skip
        if size % patch:
            raise ValueError(f"patch={patch}: must divide size={size}")
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling={pooling!r}: must be one of {', '.join(get_args(Pooling))}")
        for name, value in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value}: must be in [0, 1)")
        whole = heads * width
        self.patches = nn.Conv2d(channels, whole, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, whole)) if pooling == "token" else None
        self.positions = nn.Parameter(torch.empty(1, (size // patch) ** 2 + (pooling == "token"), whole))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(whole, width, expansion * whole, dropout, stochastic_depth * index / max(depth - 1, 1))
                for index in range(depth)
            )
        )
        self.norm = nn.LayerNorm(whole)
        self.classifier = nn.Linear(whole, classes)
        self._initialise()

    def _initialise(self) -> None:
        """Draw layers by Glorot and Bengio's uniform distribution (AISTATS 2010), the patches' as a linear one."""
        nn.init.normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, channels, size, size) to logits (n, classes)."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = self.norm(self.blocks(self.dropout(tokens + self.positions)))
        logits: Tensor = self.classifier(tokens.mean(1) if self.token is None else tokens[:, 0])
        return logits
