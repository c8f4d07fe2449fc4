"""BERT (Devlin et al., NAACL 2019) of the package `transformers`, untrained, as a classifier of token sequences."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from lt_lightning.models.common import positive


class Bert(nn.Module):
    """`BertForSequenceClassification` of a configuration; with BERT-base's sizes it has 109.5 million parameters.

    Initial values have BERT-base's spread; at another width it is scaled, so that the outputs of layers spread alike.

    Args:
        classes: number of outputs.
        vocabulary: number of different tokens.
        length: largest number of tokens of a sequence.
        depth: number of layers.
        heads: number of attention heads of a layer.
        width: number of channels of a head; a token has `heads` times as many.
        expansion: hidden units of a layer over the channels of a token.
        dropout: probability of dropout, of attention weights, too.

    Raises:
        ImportError: if `transformers` is not installed.
        ValueError: if a size is not positive, or the probability is not in [0, 1).
    """

    def __init__(
        self,
        classes: int,
        vocabulary: int,
        length: int,
        depth: int = 12,
        heads: int = 12,
        width: int = 64,
        expansion: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        positive(
            classes=classes, vocabulary=vocabulary, length=length, depth=depth, heads=heads, width=width,
            expansion=expansion,
        )  # fmt: skip
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be in [0, 1)")
        transformers = _transformers()
        config = transformers.BertConfig(
            num_labels=classes,
            vocab_size=vocabulary,
            max_position_embeddings=length,
            type_vocab_size=1,
            pad_token_id=None,  # all sequences are equally long
            num_hidden_layers=depth,
            num_attention_heads=heads,
            hidden_size=heads * width,
            intermediate_size=expansion * heads * width,
            initializer_range=0.02 * math.sqrt(768 / (heads * width)),
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            use_cache=False,
        )
        self.model: nn.Module = transformers.BertForSequenceClassification(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (n, tokens), int64, to logits (n, classes)."""
        logits: Tensor = self.model(input_ids=ids).logits
        return logits


def _transformers() -> Any:
    """Import `transformers`, which takes seconds, and which only these networks need."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ImportError(f"BERT needs the package transformers ({error}): pip install 'transformers>=5'") from None
