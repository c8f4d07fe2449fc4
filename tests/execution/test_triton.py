from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lt_lightning.execution.kernels.reference import BlockConvolution
from tests.cases import slow_but

pytest.importorskip("triton", reason="the package triton is not installed")

Pair = tuple[int, int]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[ModuleType]:
    """The kernels in Triton's interpreter, on the CPU, whether or not they were imported before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        module = reloaded()
        # Fewer programs: the interpreter runs them one after the other.
        patch.setattr("lt_lightning.execution.kernels.cuda._PROGRAMS", 6)
        yield module
    reloaded()


def reloaded() -> ModuleType:
    importlib.reload(importlib.import_module("lt_lightning.execution.kernels.triton_kernels"))
    return importlib.reload(importlib.import_module("lt_lightning.execution.kernels.cuda"))


class Packed:
    """Random groups in the packed format, made column by column, and the dense weight that they stand for."""

    def __init__(
        self, groups: int, filters: int, inputs: int, kernel: Pair, density: float, empty: tuple[int, ...] = ()
    ) -> None:
        taps = kernel[0] * kernel[1]
        self.dense = torch.zeros(groups * filters, inputs, *kernel)
        self.places: list[tuple[int, int, int]] = []
        channels: list[int] = []
        weight: list[Tensor] = []
        tap_start: list[int] = []
        for group in range(groups):
            for tap in range(taps):
                tap_start.append(len(channels))
                for channel in range(inputs):
                    if group in empty or torch.rand(()) >= density:
                        continue
                    values = torch.randn(filters)
                    self.dense[group * filters :][:filters, channel, tap // kernel[1], tap % kernel[1]] = values
                    channels.append(channel)
                    weight.append(values)
                    self.places.append((group, tap, channel))
            tap_start.append(len(channels))
        self.filters, self.kernel = filters, kernel
        self.channels = torch.tensor(channels, dtype=torch.int32)
        self.weight = torch.stack(weight)
        self.tap_start = torch.tensor(tap_start, dtype=torch.int32)
        self.outputs = torch.randperm(len(self.dense))
        self.dense = torch.zeros_like(self.dense).index_copy(0, self.outputs, self.dense)

    def convolution(self, stride: Pair, padding: Pair, dilation: Pair, device: str = "cpu") -> BlockConvolution:
        """The convolution with these columns."""
        channels, tap_start, rows = (each.to(device) for each in (self.channels, self.tap_start, self.outputs))
        return BlockConvolution(channels, tap_start, rows, self.kernel, stride, padding, dilation)

    def pack(self, dense: Tensor) -> Tensor:
        """A dense weight's values at the packed columns."""
        dense = dense[self.outputs.to(dense.device)]
        return torch.stack(
            [
                dense[group * self.filters :][: self.filters, channel, tap // self.kernel[1], tap % self.kernel[1]]
                for group, tap, channel in self.places
            ]
        )


def assert_same_as_dense(
    triton: ModuleType,
    packed: Packed,
    x: Tensor,
    stride: Pair = (1, 1),
    padding: Pair = (1, 1),
    dilation: Pair = (1, 1),
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-4,
) -> None:
    """Output and both gradients against the dense convolution, in float64, of the same rounded numbers."""
    device = x.device
    x, weight = x.to(dtype), packed.weight.to(device, dtype)
    dense = packed.dense.to(device, dtype).double().requires_grad_()
    exact = x.double().requires_grad_()
    want = F.conv2d(exact, dense, stride=stride, padding=padding, dilation=dilation)
    dy = torch.randn(want.shape, device=device).to(dtype)
    torch.autograd.backward(want, dy.double())
    assert exact.grad is not None
    assert dense.grad is not None

    convolution = packed.convolution(stride, padding, dilation, x.device.type)
    kernels = triton.CudaKernels()
    y = kernels.forward(x, weight, convolution)
    dx = kernels.input_gradient(dy, weight, x.shape, convolution)
    dw = kernels.weight_gradient(x, dy, packed.filters, convolution)
    for got, exactly in ((y, want.detach()), (dx, exact.grad), (dw, packed.pack(dense.grad))):
        assert got.dtype is (torch.float32 if got is dw else dtype)
        assert got.shape == exactly.shape
        scale = float(exactly.abs().max())
        torch.testing.assert_close(got.double(), exactly, rtol=0, atol=tolerance * max(scale, 1e-9))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    slow_but(
        [((3, 3), (1, 2), (2, 0), (1, 1)), ((3, 3), (2, 2), (5, 3), (2, 1)), ((1, 1), (2, 2), (0, 0), (1, 1))],
        [
            ((3, 3), (1, 1), (1, 1), (1, 1)),
            ((3, 3), (2, 2), (1, 1), (1, 1)),
            ((3, 3), (1, 2), (2, 0), (1, 1)),
            ((3, 3), (1, 1), (2, 2), (2, 2)),
            ((3, 3), (2, 2), (5, 3), (2, 1)),
            ((1, 1), (2, 2), (0, 0), (1, 1)),
            ((1, 1), (1, 1), (1, 0), (1, 1)),
            ((5, 2), (3, 1), (2, 1), (1, 1)),
        ],
    ),
)
def test_geometries(interpreted: ModuleType, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    torch.manual_seed(0)
    packed = Packed(groups=2, filters=16, inputs=3, kernel=kernel, density=0.7)
    assert_same_as_dense(interpreted, packed, torch.randn(3, 3, 4, 3), stride, padding, dilation)


@pytest.mark.parametrize(
    ("groups", "filters", "inputs", "batch", "density", "empty"),
    slow_but(
        [(3, 16, 5, 2, 0.4, (0, 2)), (4, 5, 1, 1, 1.0, (3,))],
        [
            (3, 16, 5, 17, 0.4, (1,)),
            (3, 16, 5, 2, 0.4, (0, 2)),
            (1, 16, 20, 3, 0.3, ()),
            (2, 32, 3, 4, 1.0, ()),
            (2, 24, 2, 18, 0.5, ()),
            (4, 5, 1, 1, 1.0, (3,)),
        ],
    ),
)
def test_groups_and_tails(
    interpreted: ModuleType, groups: int, filters: int, inputs: int, batch: int, density: float, empty: tuple[int, ...]
) -> None:
    """Empty groups, one group, all columns; filters, channels and batch that do not fill their tiles."""
    torch.manual_seed(1)
    packed = Packed(groups, filters, inputs, (3, 3), density, empty)
    assert_same_as_dense(interpreted, packed, torch.randn(batch, inputs, 2, 3))


def test_half_precision_sums_in_single(interpreted: ModuleType) -> None:
    """Not bfloat16: the interpreter multiplies its bits as integers."""
    torch.manual_seed(2)
    packed = Packed(groups=2, filters=16, inputs=5, kernel=(3, 3), density=0.5)
    assert_same_as_dense(interpreted, packed, torch.randn(6, 5, 3, 2), dtype=torch.float16, tolerance=2e-3)


def test_large_tiles(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The orientation for groups of 64 filters and more, and tiles larger than every dimension."""
    launch = importlib.import_module("lt_lightning.execution.kernels.cuda")
    for name in ("_forward", "_input_gradient", "_weight_gradient"):
        tuner = getattr(launch, name)[False]
        large = dict.fromkeys(tuner.configs[0].kwargs, 64)
        monkeypatch.setattr(tuner.configs[0], "kwargs", large)
    torch.manual_seed(3)
    packed = Packed(groups=2, filters=48, inputs=9, kernel=(3, 3), density=0.6, empty=())
    assert_same_as_dense(interpreted, packed, torch.randn(5, 9, 2, 2))


def test_any_layout_goes_in_and_a_chain_is_not_copied(interpreted: ModuleType) -> None:
    torch.manual_seed(4)
    packed = Packed(groups=2, filters=16, inputs=32, kernel=(1, 1), density=0.3)
    how = (packed.weight, packed.convolution((1, 1), (0, 0), (1, 1)))
    forward = interpreted.CudaKernels().forward
    x = torch.randn(3, 32, 2, 2)
    y = forward(x, *how)
    assert interpreted.to_batch_innermost(y) is y
    assert interpreted.to_batch_innermost(torch.relu(y)).stride() == y.stride()
    for layout in (x.to(memory_format=torch.channels_last), interpreted.to_batch_innermost(x), x.mT.contiguous().mT):
        assert torch.equal(forward(layout, *how), y)
    chained = forward(torch.relu(y), *how)
    torch.testing.assert_close(chained, F.conv2d(torch.relu(F.conv2d(x, packed.dense)), packed.dense))


def test_float32_is_multiplied_as_pytorch_would_by_either_of_its_settings() -> None:
    precision = importlib.import_module("lt_lightning.execution.kernels.cuda")._precision
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    try:
        for allowed in (True, False):
            cudnn.allow_tf32 = allowed
            assert precision() == ("tf32" if allowed else "ieee")
        for value in ("ieee", "tf32"):
            cudnn.conv.fp32_precision = value  # the newer one: asking the older one may then be an error
            assert precision() == value
    finally:
        cudnn.allow_tf32 = before == "tf32"


@pytest.fixture
def compiled() -> Iterator[ModuleType]:
    """The kernels as a GPU runs them, also while other tests have them interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield reloaded()
    reloaded()


@pytest.fixture
def cuda(compiled: ModuleType) -> ModuleType:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return compiled


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", ["forward", "input_gradient", "weight_gradient"])
def test_kernels_compile_for_a_gpu_that_need_not_be_here(name: str, precision: str, compiled: ModuleType) -> None:
    """To machine code that uses the tensor cores of compute capability 9.0."""
    compiler: Any = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    launch = importlib.import_module("lt_lightning.execution.kernels.cuda")
    kernel = getattr(launch.kernels, f"{name}_kernel")
    config = getattr(launch, f"_{name}")[False].configs[0]
    windows = dict.fromkeys(("SH", "SW", "PH", "PW", "DH", "DW"), 1) | {"KH": 3, "KW": 3, "PRECISION": "tf32"}
    fixed = {key: value for key, value in (windows | config.kwargs).items() if key in kernel.arg_names}
    number = "fp32" if precision == "tf32" else precision
    types = dict.fromkeys(("rows", "taps", "tap_start"), "*i32") | {"partial": "*fp32", "outputs": "*i64"}
    types |= dict.fromkeys(("x", "dy", "dense", "dx", "weight", "y"), f"*{number}") | dict.fromkeys(fixed, "constexpr")
    signature = {key: types.get(key, "i32") for key in kernel.arg_names}
    source = compiler.ASTSource(kernel, signature, fixed)
    made = compiler.compile(source, target=target, options={"num_warps": config.num_warps})
    assert made.metadata.shared < 227 * 1024
    assert "mma" in made.asm["ptx"]
    assert made.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("filters", "stride", "size"), [(32, 2, 8), (48, 1, 6)])  # each compiles some kernels
def test_on_the_device(
    cuda: ModuleType, dtype: torch.dtype, tolerance: float, filters: int, stride: int, size: int
) -> None:
    torch.manual_seed(0)
    packed = Packed(groups=3, filters=filters, inputs=40, kernel=(3, 3), density=0.25, empty=(1,))
    x = torch.randn(70, 40, size, size, device="cuda")
    assert_same_as_dense(cuda, packed, x, (stride, stride), dtype=dtype, tolerance=tolerance)


@pytest.mark.gpu
def test_results_repeat_bit_for_bit_and_replay_in_a_graph(cuda: ModuleType) -> None:
    torch.manual_seed(0)
    packed = Packed(groups=4, filters=32, inputs=64, kernel=(3, 3), density=0.25)
    convolution = packed.convolution((1, 1), (1, 1), (1, 1), "cuda")
    kernels = cuda.CudaKernels()
    weight = packed.weight.cuda().bfloat16()
    x = torch.randn(128, 64, 8, 8, device="cuda").bfloat16()
    dy = torch.randn(128, 128, 8, 8, device="cuda").bfloat16()

    def all_three() -> list[Tensor]:
        return [
            kernels.forward(x, weight, convolution),
            kernels.input_gradient(dy, weight, x.shape, convolution),
            kernels.weight_gradient(x, dy, 32, convolution),
        ]

    first = all_three()
    for one, other in zip(first, all_three(), strict=True):
        assert torch.equal(one, other)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = all_three()
    x.mul_(2)
    dy.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, all_three(), strict=True):
        assert torch.equal(one, other)


def test_where_pytorch_is_deterministic_the_shapes_alone_choose_a_tile(compiled: ModuleType) -> None:
    """Else the fastest of several is taken."""
    launch = compiled
    for name, size in (("_forward", "R"), ("_input_gradient", "C"), ("_weight_gradient", "R")):
        tried, first = (
            tuner.early_config_prune(tuner.configs, {size: 64, "N": 256})
            for tuner in (getattr(launch, name)[deterministic] for deterministic in (False, True))
        )
        assert len(tried) > 1
        assert [str(config) for config in first] == [str(tried[0])]
