"""Networks as ONNX: the file's bytes, made by `torch.onnx`, and the session of ONNX Runtime that runs them.

Needs the extra `export` (onnx, onnxscript, onnxruntime), which is imported only when it is used.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lt_lightning.tickets.export.torch_program import in_standard_operators

EXTRA = ("onnx", "onnxscript", "onnxruntime")
IMAGES, LOGITS = "images", "logits"


def require_extra() -> None:
    """Check that the extra is installed.

    Raises:
        ImportError: if something is missing; names it and the command to type.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install 'lt-lightning[export]'")


def to_onnx(network: nn.Module, shape: tuple[int, ...]) -> bytes:
    """Return the content of an ONNX file that computes what the network does in evaluation mode, for any batch size.

    Layers that no standard operator computes run in a standard form (`in_standard_operators`).

    Args:
        network: network from one tensor to one tensor; it is left as it was.
        shape: shape of one image.

    Raises:
        ImportError: without the extra.
    """
    require_extra()
    standard = in_standard_operators(network)
    # Two images, since torch.export would take a single one for a fixed size.
    images = torch.zeros(2, *shape)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            standard,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=[IMAGES],
            output_names=[LOGITS],
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def make_session(model: bytes | Path, threads: int) -> Any:
    """Make an `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: an ONNX file, or its content.
        threads: number of threads of a single operator; operators run one after the other.

    Raises:
        ImportError: without the extra.
    """
    require_extra()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    # Otherwise its threads wait busily for the next run, at the cost of whatever runs in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, images: Tensor) -> Tensor:
    """Return the logits of a session for images on the CPU."""
    (logits,) = session.run([LOGITS], {IMAGES: np.ascontiguousarray(images.numpy())})
    return torch.from_numpy(logits)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about libraries that are not installed, and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
