"""Networks under ONNX Runtime, as functions to be timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from lt_lightning.tickets.export.onnx_file import IMAGES, make_session, to_onnx


def onnx_call(network: nn.Module | bytes | Path, inputs: Tensor, threads: int) -> Callable[[], object]:
    """A function that runs a network on ONNX Runtime's CPU provider.

    The network is exported and the session made here, once; what is timed is the run.

    Args:
        network: to export, in evaluation mode; or an ONNX file of ours, or its content. It is left as it was.
        inputs: a batch of images.
        threads: of a single operator.

    Returns:
        a call that gives the outputs, a list of one numpy array.

    Raises:
        ImportError: without the extra `export`.
    """
    model = to_onnx(network, tuple(inputs.shape[1:])) if isinstance(network, nn.Module) else network
    session = make_session(model, threads)
    feed = {IMAGES: np.ascontiguousarray(inputs.detach().cpu().numpy())}
    return lambda: session.run(None, feed)
