"""A network under ONNX Runtime computes what it computes in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.networks import onnx_call
from lt_lightning.tickets.export import standard_formats


def outputs(call: Callable[[], object]) -> np.ndarray:
    (logits,) = cast("list[np.ndarray]", call())
    return logits


@pytest.mark.slow
def test_it_runs_the_network_in_evaluation_mode(conv_net: Callable[[], nn.Module], tmp_path: Path) -> None:
    network = conv_net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(4, 1, 6, 6).contiguous(memory_format=torch.channels_last)
    found = outputs(onnx_call(network, images, threads=1))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad():
        expected = network.eval()(images)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)

    content = standard_formats.to_onnx(network, (1, 6, 6))
    (tmp_path / "network.onnx").write_bytes(content)
    for model in (content, tmp_path / "network.onnx"):
        np.testing.assert_allclose(outputs(onnx_call(model, images[:1], 1)), expected[:1].numpy(), rtol=1e-5, atol=1e-6)


def test_threads_are_those_asked_for() -> None:
    content = standard_formats.to_onnx(nn.Flatten(), (1, 2, 2))
    for threads in (1, 2):
        assert standard_formats.make_session(content, threads).get_session_options().intra_op_num_threads == threads


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_formats, "EXTRA", ("torch", "no_such_package_"))
    told = r"no_such_package_: .* 'lt-lightning\[export\]'"
    with pytest.raises(ImportError, match=told):
        onnx_call(nn.Flatten(), torch.zeros(1, 1, 2, 2), 1)
    with pytest.raises(ImportError, match=told):
        onnx_call(b"", torch.zeros(1, 1, 2, 2), 1)
