"""The Triton kernels: implicit matrix products over gathered columns, batch innermost.

Images lie in memory as (height, width, channels, batch), so the values of one column (a channel at a kernel position)
at one output position are one contiguous row over the batch: a tile of columns is gathered by whole rows, with 16-byte
loads, and needs no im2col buffer. `outputs` (int64) has at g * R + r the output channel of filter r of group g:
filters are put at their positions as they are stored, which costs nothing.

Sizes: `N` batch, `C` input channels, `K = G * R` filters in G groups of R, `H x W` input, `OH x OW` output,
`T = KH * KW` kernel positions. Tiles: powers of two, at least 16.

Only built-ins of the language are used, none of its library functions, so that the kernels run in Triton's interpreter
whenever that is switched on.
"""

# The language has no types that mypy knows, and capitals are sizes, as in the formulas.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803, N806

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["C", "H", "W", "OH", "OW", "G", "COLUMNS", "SPLITS"]
"""Arguments on which no load's width depends: the kernels are compiled once for all of their values."""


@triton.jit
def column_kernel(
    channels,
    tap_start,
    rows,
    taps,
    C,
    W,
    DH: tl.constexpr,
    DW: tl.constexpr,
    KW: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write for every packed column its kernel position, and its image row relative to the window's corner.

    There is one program per group and kernel position.
    """
    group = tl.program_id(0) // T
    tap = tl.program_id(0) % T
    start = tl.load(tap_start + group * (T + 1) + tap)
    end = tl.load(tap_start + group * (T + 1) + tap + 1)
    corner = (tap // KW * DH * W + tap % KW * DW) * C
    for j in range(start, end, BLOCK):
        column = j + tl.arange(0, BLOCK)
        live = column < end
        tl.store(rows + column, corner + tl.load(channels + column, mask=live, other=0), mask=live)
        tl.store(taps + column, tap, mask=live)


@triton.jit
def dense_kernel(
    weight,
    channels,
    tap_start,
    outputs,
    dense,
    C,
    K,
    R,
    T: tl.constexpr,
    BR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the packed weight into a zeroed dense one of shape (T, C, K); one program per group and position."""
    group = tl.program_id(0) // T
    tap = tl.program_id(0) % T
    start = tl.load(tap_start + group * (T + 1) + tap)
    end = tl.load(tap_start + group * (T + 1) + tap + 1)
    for j in range(start, end, BLOCK):
        column = j + tl.arange(0, BLOCK)
        channel = tl.load(channels + column, mask=column < end, other=0)
        for first in range(0, R, BR):
            r = first + tl.arange(0, BR)
            live = (column < end)[:, None] & (r < R)[None, :]
            values = tl.load(weight + column[:, None].to(tl.int64) * R + r[None, :], mask=live, other=0.0)
            output = tl.load(outputs + group * R + r, mask=r < R, other=0)
            into = (tap * C + channel)[:, None].to(tl.int64) * K + output[None, :]
            tl.store(dense + into, values, mask=live)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x,
    weight,
    rows,
    tap_start,
    outputs,
    y,
    N,
    C,
    H,
    W,
    OH,
    OW,
    G,
    R,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PRECISION: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """y[position, output of r in g, n] = sum over the columns j of g of weight[j, r] * x[row of j at position, n].

    There is one program per tile of a group's filters (fastest, so that groups share the rows in the cache), output
    position and tile of the batch. Kernel positions outside the image are skipped: a row of the kernel keeps a
    contiguous range of its positions, hence of the sorted columns; where every row is whole, all its rows are one
    range.
    """
    T: tl.constexpr = KH * KW
    tiles = (R + BR - 1) // BR
    pid = tl.program_id(0)
    group = pid % (G * tiles) // tiles
    r = pid % tiles * BR + tl.arange(0, BR)
    position = pid // (G * tiles) % (OH * OW)
    n = pid // (G * tiles * OH * OW) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)

    top = position // OW * SH - PH
    left = position % OW * SW - PW
    first_h = tl.minimum((tl.maximum(-top, 0) + DH - 1) // DH, KH)
    first_w = tl.minimum((tl.maximum(-left, 0) + DW - 1) // DW, KW)
    end_h = tl.minimum((tl.maximum(H - top, 0) + DH - 1) // DH, KH)
    end_w = tl.minimum((tl.maximum(W - left, 0) + DW - 1) // DW, KW)
    whole = (first_w == 0) & (end_w == KW)
    ranges = tl.where(whole, 1, end_h - first_h)
    corner = (top * W + left) * C

    # The tensor cores want at least 64 rows: the batch where a group has fewer filters.
    if BR < 64:  # noqa: SIM108
        total = tl.full((BN, BR), 0.0, tl.float32)
    else:
        total = tl.full((BR, BN), 0.0, tl.float32)
    for i in range(ranges):
        first = (first_h + i) * KW + first_w
        last = tl.where(whole, end_h * KW, (first_h + i) * KW + end_w)
        start = tl.load(tap_start + group * (T + 1) + first)
        end = tl.load(tap_start + group * (T + 1) + last)
        for j in range(start, end, BK):
            live = j + k < end
            row = corner + tl.load(rows + j + k, mask=live, other=0)
            gathered = tl.load(
                x + row[:, None].to(tl.int64) * N + n[None, :], mask=live[:, None] & (n < N)[None, :], other=0.0
            )
            values = tl.load(
                weight + (j + k)[:, None].to(tl.int64) * R + r[None, :],
                mask=live[:, None] & (r < R)[None, :],
                other=0.0,
            )
            if BR < 64:
                total += tl.dot(tl.trans(gathered), values, input_precision=PRECISION)
            else:
                total += tl.dot(tl.trans(values), gathered, input_precision=PRECISION)
    if BR < 64:
        total = tl.trans(total)
    output = tl.load(outputs + group * R + r, mask=r < R, other=0)
    into = (position * G * R + output)[:, None] * N + n[None, :]
    tl.store(y + into, total.to(y.dtype.element_ty), mask=(r < R)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=SIZES)
def input_gradient_kernel(
    dy,
    dense,
    dx,
    N,
    C,
    H,
    W,
    OH,
    OW,
    K,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PRECISION: tl.constexpr,
    BC: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """dx[position, c, n] = sum over kernel positions t and filters f of dense[t, c, f] * dy[position under t, f, n].

    There is one program per tile of input channels (fastest), input position and tile of the batch.
    """
    tiles = (C + BC - 1) // BC
    pid = tl.program_id(0)
    c = pid % tiles * BC + tl.arange(0, BC)
    position = pid // tiles % (H * W)
    n = pid // (tiles * H * W) * BN + tl.arange(0, BN)
    below = position // W + PH
    right = position % W + PW

    total = tl.full((BC, BN), 0.0, tl.float32)
    for tap in range(KH * KW):
        oh = below - tap // KW * DH
        ow = right - tap % KW * DW
        inside = (oh >= 0) & (oh % SH == 0) & (oh // SH < OH) & (ow >= 0) & (ow % SW == 0) & (ow // SW < OW)
        if inside:
            source = (oh // SH * OW + ow // SW) * K
            for first in range(0, K, BK):
                f = first + tl.arange(0, BK)
                values = tl.load(
                    dense + (tap * C + c)[:, None].to(tl.int64) * K + f[None, :],
                    mask=(c < C)[:, None] & (f < K)[None, :],
                    other=0.0,
                )
                gradient = tl.load(
                    dy + (source + f)[:, None].to(tl.int64) * N + n[None, :],
                    mask=(f < K)[:, None] & (n < N)[None, :],
                    other=0.0,
                )
                total += tl.dot(values, gradient, input_precision=PRECISION)
    into = (position * C + c)[:, None].to(tl.int64) * N + n[None, :]
    tl.store(dx + into, total.to(dx.dtype.element_ty), mask=(c < C)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    x,
    dy,
    rows,
    taps,
    tap_start,
    outputs,
    partial,
    N,
    C,
    H,
    W,
    OH,
    OW,
    G,
    R,
    COLUMNS,
    SPLITS,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PRECISION: tl.constexpr,
    BR: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """partial[s, j, r] = sum over the positions of part s and the batch n of x[row of j, n] * dy[position, output, n].

    There is one program per part of the output positions (slowest), tile of one group's columns and tile of its
    filters. How many tiles a group has only the device knows: the grid has up to one more per group than needed, and
    those do nothing.
    """
    T: tl.constexpr = KH * KW
    r_tiles = (R + BR - 1) // BR
    blocks = (COLUMNS + BM - 1) // BM + G
    pid = tl.program_id(0)
    r = pid % r_tiles * BR + tl.arange(0, BR)
    block = pid // r_tiles % blocks
    part = pid // (r_tiles * blocks)

    group = 0
    start = 0
    end = 0
    before = 0
    for g in range(G):
        a = tl.load(tap_start + g * (T + 1))
        e = tl.load(tap_start + g * (T + 1) + T)
        count = (e - a + BM - 1) // BM
        mine = (block >= before) & (block < before + count)
        group = tl.where(mine, g, group)
        start = tl.where(mine, a + (block - before) * BM, start)
        end = tl.where(mine, e, end)
        before += count

    if start < end:
        column = start + tl.arange(0, BM)
        live = column < end
        row = tl.load(rows + column, mask=live, other=0)
        tap = tl.load(taps + column, mask=live, other=0)
        output = tl.load(outputs + group * R + r, mask=r < R, other=0)
        down = tap // KW * DH
        across = tap % KW * DW
        n_tiles = (N + BK - 1) // BK
        each = (OH * OW + SPLITS - 1) // SPLITS
        stop = tl.minimum((part + 1) * each, OH * OW)
        total = tl.full((BM, BR), 0.0, tl.float32)
        for i in range(part * each * n_tiles, stop * n_tiles):
            position = i // n_tiles
            n = i % n_tiles * BK + tl.arange(0, BK)
            top = position // OW * SH - PH
            left = position % OW * SW - PW
            inside = live & (top + down >= 0) & (top + down < H) & (left + across >= 0) & (left + across < W)
            gathered = tl.load(
                x + ((top * W + left) * C + row)[:, None].to(tl.int64) * N + n[None, :],
                mask=inside[:, None] & (n < N)[None, :],
                other=0.0,
            )
            gradient = tl.load(
                dy + (position * G * R + output)[None, :] * N + n[:, None],
                mask=(r < R)[None, :] & (n < N)[:, None],
                other=0.0,
            )
            total += tl.dot(gathered, gradient, input_precision=PRECISION)
        into = (part * COLUMNS + column)[:, None].to(tl.int64) * R + r[None, :]
        tl.store(partial + into, total, mask=live[:, None] & (r < R)[None, :])
