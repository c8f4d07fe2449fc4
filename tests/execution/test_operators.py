"""Block convolution, compiled and by reference, against the dense convolution with the masked weight."""

from __future__ import annotations

import ctypes
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lt_lightning.execution.blocks.block_formats import BlockFormat
from lt_lightning.execution.blocks.operators import (
    block_conv2d,
    block_conv2d_input_gradient,
    block_conv2d_weight_gradient,
)
from lt_lightning.execution.kernels import cpu
from lt_lightning.structures.plan import Block
from tests.cases import slow_but

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C++ compiler")


class Case(NamedTuple):
    """A layer and its input."""

    batch: int = 3
    inputs: int = 20
    size: tuple[int, int] = (7, 9)
    groups: int = 3
    filters: int = 16
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    density: float = 0.3
    empty: int = 0

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        return self.kernel, self.stride, self.padding, self.dilation

    def form(self, seed: int = 0) -> BlockFormat:
        """Random groups; the first `empty` of them have no columns."""
        generator = torch.Generator().manual_seed(seed)
        outputs = self.groups * self.filters
        taken = torch.rand(self.groups, self.inputs * self.kernel[0] * self.kernel[1], generator=generator)
        taken[: self.empty] = 2.0
        rows = torch.randperm(outputs, generator=generator).reshape(self.groups, self.filters)
        blocks = [Block(r, (t < self.density).nonzero().reshape(-1)) for r, t in zip(rows, taken, strict=True)]
        return BlockFormat.from_blocks(blocks, (outputs, self.inputs, *self.kernel))


CASES = {
    "plain": Case(),
    "one sample": Case(batch=1),
    "a full vector of samples": Case(batch=16),
    "odd batch": Case(batch=37, size=(5, 4)),
    "batch of 21": Case(batch=21, size=(4, 4), filters=32),
    "batch of 7": Case(batch=7, size=(4, 5)),
    "half a vector more": Case(batch=25, size=(4, 3)),
    "many channels": Case(batch=17, inputs=70, size=(4, 3), groups=2, filters=40, density=0.2),
    "stride 2": Case(batch=18, stride=(2, 2)),
    "stride 3": Case(stride=(3, 3), size=(11, 8)),
    "uneven strides": Case(batch=17, stride=(1, 2), padding=(0, 2)),
    "stride beyond the kernel": Case(batch=17, kernel=(1, 1), stride=(3, 2), padding=(0, 0)),
    "no padding": Case(padding=(0, 0)),
    "padding 2": Case(batch=17, padding=(2, 2)),
    "padding beyond the kernel": Case(batch=17, kernel=(1, 1), padding=(2, 2)),
    "dilation 2": Case(batch=17, dilation=(2, 2), padding=(2, 2)),
    "dilation and stride": Case(batch=17, dilation=(2, 3), stride=(3, 2), padding=(1, 2), size=(13, 11)),
    "1x1": Case(batch=17, kernel=(1, 1), padding=(0, 0)),
    "5x5": Case(batch=17, kernel=(5, 5), padding=(2, 2), inputs=5),
    "1x7": Case(batch=17, kernel=(1, 7), padding=(0, 3)),
    "image smaller than the kernel": Case(batch=17, size=(1, 2)),
    "one pixel": Case(batch=19, size=(1, 1), kernel=(1, 1), padding=(0, 0)),
    "empty groups": Case(batch=17, empty=2),
    "nothing but empty groups": Case(batch=17, empty=3),
    "one group": Case(batch=17, groups=1),
    "all columns": Case(batch=17, density=1.1),
    "single input": Case(batch=17, inputs=1, density=0.6),
    **{f"R={r}": Case(batch=18, filters=r, size=(4, 5)) for r in (1, 5, 8, 12, 24, 31, 32, 48, 64, 88, 128)},
}


class Results(NamedTuple):
    """Output, and gradients of input and packed weight."""

    y: Tensor
    dx: Tensor
    dw: Tensor


def _tensors(case: Case, form: BlockFormat, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Input, packed weight and output gradient."""
    torch.manual_seed(seed)
    x = torch.randn(case.batch, case.inputs, *case.size, dtype=torch.float64)
    weight = torch.randn(form.columns, form.filters, dtype=torch.float64)
    dy = torch.randn_like(_dense(x, form.unpack(weight), case))
    return x.to(dtype), weight.to(dtype), dy.to(dtype)


def _dense(x: Tensor, weight: Tensor, case: Case) -> Tensor:
    return F.conv2d(x, weight, None, case.stride, case.padding, case.dilation)


def _expected(case: Case, form: BlockFormat, x: Tensor, weight: Tensor, dy: Tensor) -> Results:
    """By autograd through the masked dense convolution, in float64."""
    x = x.double().requires_grad_()
    dense = form.unpack(weight.double()).requires_grad_()
    y = _dense(x, dense, case)
    dx, dw = torch.autograd.grad(y, (x, dense), dy.double())
    return Results(y.detach(), dx, form.pack(dw))


def _actual(case: Case, form: BlockFormat, x: Tensor, weight: Tensor, dy: Tensor, rows: Tensor) -> Results:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = block_conv2d(x, weight, form.channels, form.tap_start, *case.windows, rows)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    return Results(y.detach(), dx, dw)


def _assert_close(actual: Results, expected: Results, tolerance: float) -> None:
    """Within `tolerance` of the largest value."""
    for name, a, e in zip(Results._fields, actual, expected, strict=True):
        assert a.shape == e.shape, name
        scale = float(e.abs().max()) if e.numel() else 0.0
        error = float((a.double() - e).abs().max()) if e.numel() else 0.0
        assert error <= tolerance * max(scale, 1e-3), f"{name}: {error} of {scale}"


def _assert_rounded(actual: Results, expected: Results) -> None:
    """Each value is the bfloat16 next to one that float32 sums allow (half a unit of its last of 8 bits)."""
    for name, a, e in zip(Results._fields, actual, expected, strict=True):
        allowed = 3e-6 * max(float(e.abs().max()) if e.numel() else 0.0, 1e-3)
        excess = (a.double() - e).abs() - (e.abs() * 2**-8 if a.dtype == torch.bfloat16 else 0.0)
        assert a.shape == e.shape, name
        assert not (excess > allowed).any(), f"{name}: {float(excess.max())}"


@pytest.fixture(params=["", "avx2", "portable"], ids=["native", "avx2", "portable"])
def _instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs a test with every set of instructions that this machine has; the build is cached over tests."""
    if request.param == "avx2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv("LT_LIGHTNING_CPU", request.param)
    cpu.library.cache_clear()
    yield
    cpu.library.cache_clear()


@needs_compiler
@pytest.mark.usefixtures("_instructions")
def test_compiled_kernel_equals_masked_dense() -> None:
    assert cpu.library() is not None
    for name, case in CASES.items():
        form = case.form()
        x, weight, dy = _tensors(case, form, torch.float32)
        expected = _expected(case, form, x, weight, dy)
        actual = _actual(case, form, x, weight, dy, form.rows)
        try:
            _assert_close(actual, expected, 3e-6)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@needs_compiler
@pytest.mark.usefixtures("_instructions")
def test_compiled_kernel_in_bfloat16_sums_in_float32_and_rounds_once() -> None:
    """With a float32 weight, as under autocast: its gradient is not rounded."""
    for name, case in CASES.items():
        form = case.form()
        x, weight, dy = _tensors(case, form, torch.bfloat16)
        expected = _expected(case, form, x, weight, dy)
        actual = _actual(case, form, x, weight.float(), dy, form.rows)
        assert [value.dtype for value in actual] == [torch.bfloat16, torch.bfloat16, torch.float32]
        try:
            _assert_rounded(actual, expected)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@needs_compiler
def test_bfloat16_needs_no_copies_in_float32_where_the_processor_multiplies_it() -> None:
    library = cpu.library()
    assert library is not None
    assert cpu.CpuKernels(library).computes(torch.bfloat16) == ("avx512_bf16" in cpu.instructions())
    assert not cpu.CpuKernels(library).computes(torch.float16)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_infinite_inputs_do_not_become_nan_in_columns_that_fill_up_pairs(columns: int) -> None:
    case = Case(batch=16, inputs=columns, kernel=(1, 1), padding=(0, 0), density=1.1)
    form = case.form()
    x, weight, _ = _tensors(case, form, torch.bfloat16)
    x[3, -1] = torch.inf
    y = block_conv2d(x, weight, form.channels, form.tap_start, *case.windows, form.rows)
    assert y[3].isinf().all()
    assert y[:3].isfinite().all()
    assert y[4:].isfinite().all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_reference_equals_masked_dense_in_float64(case: Case) -> None:
    form = case.form()
    x, weight, dy = _tensors(case, form, torch.float64)
    expected = _expected(case, form, x, weight, dy)
    _assert_close(_actual(case, form, x, weight, dy, form.rows), expected, 1e-12)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@needs_compiler
@settings(deadline=None, max_examples=80)
@given(
    case=st.builds(
        Case,
        batch=st.integers(1, 35),
        inputs=st.integers(1, 40),
        size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
        groups=st.integers(1, 3),
        filters=st.sampled_from([3, 8, 16, 24, 32]),
        kernel=pairs,
        stride=pairs,
        padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        dilation=pairs,
        density=st.floats(0.0, 1.1),
        empty=st.integers(0, 2),
    ),
    seed=st.integers(0, 2**31),
)
def test_compiled_kernel_equals_masked_dense_for_random_layers(case: Case, seed: int) -> None:
    spans = zip(case.size, case.padding, case.dilation, case.kernel, strict=True)
    if any(size + 2 * padding < dilation * (kernel - 1) + 1 for size, padding, dilation, kernel in spans):
        return
    form = case.form(seed)
    x, weight, dy = _tensors(case, form, torch.float32, seed)
    actual = _actual(case, form, x, weight, dy, form.rows)
    _assert_close(actual, _expected(case, form, x, weight, dy), 3e-6)
    x, weight, dy = _tensors(case, form, torch.bfloat16, seed)
    actual = _actual(case, form, x, weight.float(), dy, form.rows)
    _assert_rounded(actual, _expected(case, form, x, weight, dy))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [3, 35])
def test_threads_share_the_work(batch: int, dtype: torch.dtype) -> None:
    case = Case(batch=batch, size=(6, 5))
    form = case.form()
    x, weight, dy = _tensors(case, form, dtype)
    expected = _expected(case, form, x, weight, dy)
    tensors = (x, weight.float(), dy)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        try:
            first, second = (_actual(case, form, *tensors, form.rows) for _ in range(2))
        finally:
            torch.set_num_threads(1)
        _assert_rounded(first, expected)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_any_layout_of_inputs_and_gradients() -> None:
    case = Case(batch=17)
    form = case.form()
    x, weight, dy = _tensors(case, form, torch.float32)
    plain = _actual(case, form, x, weight, dy, form.rows)
    assert plain.y.is_contiguous(memory_format=torch.channels_last)
    assert plain.dx.is_contiguous(memory_format=torch.channels_last)
    strided = torch.randn(17, case.inputs, 7, 18)[..., ::2].copy_(x)
    summed = dy.mean(dim=(2, 3), keepdim=True)  # its gradient is an expanded tensor, as that of a mean is
    for other in (x.to(memory_format=torch.channels_last), strided):
        again = _actual(
            case,
            form,
            other,
            weight.t().contiguous().t(),
            dy.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
            form.rows,
        )
        assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))
    expanded = _actual(case, form, x, weight, summed.expand_as(dy), form.rows)
    _assert_close(expanded, _expected(case, form, x, weight, summed.expand_as(dy)), 3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_rounded_to_narrow_types(dtype: torch.dtype) -> None:
    case = Case(batch=17)
    form = case.form()
    x, weight, dy = _tensors(case, form, dtype)
    nearly = weight.float() * (1 + 1e-5)
    narrow = _actual(case, form, x, weight, dy, form.rows)
    under_autocast = _actual(case, form, x, nearly, dy, form.rows)
    assert torch.equal(narrow.y, under_autocast.y)
    assert torch.equal(narrow.dx, under_autocast.dx)
    assert torch.equal(narrow.dw, under_autocast.dw.to(dtype))
    assert (narrow.dx.dtype, narrow.dw.dtype) == (dtype, dtype)
    _assert_close(narrow, _expected(case, form, x, weight, dy), 1e-2)


def test_gradients_by_finite_differences() -> None:
    case = Case(batch=2, inputs=3, size=(4, 5), groups=2, filters=2, stride=(2, 1), density=0.5)
    form = case.form()
    x, weight, _ = _tensors(case, form, torch.float64)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = block_conv2d(x, weight, form.channels, form.tap_start, *case.windows, form.rows)
        return y

    assert torch.autograd.gradcheck(convolve, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("dtype", slow_but([torch.float32], [torch.float32, torch.bfloat16, torch.float64]))
def test_operations_keep_the_rules_of_torch_library(dtype: torch.dtype) -> None:
    case = Case(batch=2, inputs=4, size=(5, 4), groups=2, filters=8, density=0.5)
    form = case.form()
    x, weight, dy = _tensors(case, form, dtype)
    index = (form.channels, form.tap_start)
    grads = (x.clone().requires_grad_(), weight.clone().requires_grad_())
    torch.library.opcheck(block_conv2d, (*grads, *index, *case.windows, form.rows))
    torch.library.opcheck(block_conv2d_input_gradient, (dy, weight, *index, list(x.shape), *case.windows, form.rows))
    torch.library.opcheck(block_conv2d_weight_gradient, (x, dy, *index, form.filters, *case.windows, form.rows))


def _wrong(**changes: object) -> dict[str, object]:
    case = Case()
    form = case.form()
    x, weight, _ = _tensors(case, form, torch.float32)
    arguments: dict[str, object] = {
        "x": x,
        "weight": weight,
        "channels": form.channels,
        "tap_start": form.tap_start,
        **dict(zip(("kernel", "stride", "padding", "dilation"), case.windows, strict=True)),
        "rows": form.rows,
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": torch.zeros(3, 7, 9)}, r"input \(3, 7, 9\)"),
        ({"weight": torch.zeros(5, 16)}, r"weight \(5, 16\)"),
        ({"channels": Case().form().channels.long()}, r"channels torch\.int64"),
        ({"rows": torch.arange(47)}, r"rows \(47,\) .*\(48,\)"),
        ({"x": torch.zeros(3, 20, 0, 0)}, r"\(0, 0\).*\(3, 3\)"),
        pytest.param({"x": torch.zeros(3, 19, 7, 9)}, "tap_start, channels or rows", marks=needs_compiler),
        pytest.param({"rows": torch.zeros(48, dtype=torch.int64)}, "tap_start, channels or rows", marks=needs_compiler),
        pytest.param(
            {"tap_start": Case().form().tap_start.flip(0)}, "tap_start, channels or rows", marks=needs_compiler
        ),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        block_conv2d(**_wrong(**changes))


def test_an_empty_batch() -> None:
    case = Case(batch=0)
    form = case.form()
    x, weight, dy = _tensors(case, form, torch.float32)
    result = _actual(case, form, x, weight, dy, form.rows)
    assert result.y.shape == (0, 48, 7, 9)
    assert not result.dw.any()


@pytest.mark.parametrize("missing", ["compiler", "folder", "flags"])
def test_without_a_compiled_kernel_it_runs_dense_with_one_warning(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if missing == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        says = "no C\\+\\+ compiler"
    elif missing == "folder":
        (tmp_path / "file").touch()
        monkeypatch.setenv("LT_LIGHTNING_CACHE", str(tmp_path / "file"))
        says = "file"
    else:
        monkeypatch.setenv("LT_LIGHTNING_CPU", "abacus")
        says = "LT_LIGHTNING_CPU=abacus: must be one of avx512_bf16, avx512, avx2, portable"
    case = Case()
    form = case.form()
    tensors = _tensors(case, form, torch.float32)
    cpu.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match=says) as caught:
            actual = [_actual(case, form, *tensors, form.rows) for _ in range(2)]
        assert len(caught) == 1
    finally:
        cpu.library.cache_clear()
    for results in actual:
        _assert_close(results, _expected(case, form, *tensors), 3e-6)


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit 0\necho "x.cpp: error: no luck" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("LT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    with pytest.raises(cpu.BuildError, match=r"broken fails on block_conv.cpp: x.cpp: error: no luck"):
        cpu.compile_kernel("portable")
    assert list((tmp_path / "cache" / "kernels").iterdir()) == []


@needs_compiler
@pytest.mark.slow
def test_builders_at_the_same_time_make_one_file_that_is_used_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a compiler that notes every call: several builders may compile, later ones do not."""
    real = cpu._compiler()
    counted = tmp_path / "counted"
    counted.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo call >> {tmp_path}/calls\nexec {real} -O0 "$@" -O0\n')
    counted.chmod(0o755)
    monkeypatch.setenv("CXX", str(counted))
    monkeypatch.setenv("LT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(cpu.compile_kernel, ["portable"] * 2))
    calls = (tmp_path / "calls").read_text().count("call")
    assert len(paths) == 1
    assert list((tmp_path / "cache" / "kernels").iterdir()) == list(paths)
    assert hasattr(ctypes.CDLL(str(next(iter(paths)))), "block_conv_forward")
    cpu.compile_kernel("portable")
    assert (tmp_path / "calls").read_text().count("call") == calls


@needs_compiler
def test_every_set_of_instructions_has_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_LIGHTNING_CPU", "portable")
    assert cpu.instructions() == ("portable",)
    assert cpu.compile_kernel("portable").name.startswith("block_conv-portable-")
    monkeypatch.delenv("LT_LIGHTNING_CPU")
    native = cpu.instructions()[0]
    assert native == "portable" or cpu.compile_kernel(native) != cpu.compile_kernel("portable")


@needs_compiler
def test_a_compiler_that_does_not_know_the_best_instructions_takes_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = cpu._compiler()
    old = tmp_path / "old"
    old.write_text(
        '#!/bin/sh\ncase "$*" in *-mavx512bf16*) echo "error: unknown option" >&2; exit 1;; esac\n'
        f'exec {real} "$@" -O0\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    monkeypatch.setenv("LT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu, "instructions", lambda: ("avx512_bf16", "portable"))
    cpu.library.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            library = cpu.library()
    finally:
        cpu.library.cache_clear()
    assert library is not None
    assert not cpu.CpuKernels(library).computes(torch.bfloat16)


def test_headers_are_part_of_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A changed header makes another file."""
    sources = tmp_path / "sources"
    shutil.copytree(cpu.SOURCE.parent, sources, ignore=shutil.ignore_patterns("*.py*"))
    quiet = tmp_path / "quiet"
    quiet.write_text('#!/bin/sh\nfor last; do :; done\n[ "$1" = --version ] && echo 1 || : > "$last"\n')
    quiet.chmod(0o755)
    monkeypatch.setenv("CXX", str(quiet))
    monkeypatch.setenv("LT_LIGHTNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu, "SOURCE", sources / cpu.SOURCE.name)
    before = cpu.compile_kernel("portable")
    assert cpu.compile_kernel("portable") == before
    with (sources / "vectors.h").open("a", encoding="utf-8") as header:
        header.write("// changed\n")
    assert cpu.compile_kernel("portable") != before


@needs_compiler
def test_no_warning_where_the_kernel_is_there() -> None:
    case = Case()
    form = case.form()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _actual(case, form, *_tensors(case, form, torch.float32), form.rows)
