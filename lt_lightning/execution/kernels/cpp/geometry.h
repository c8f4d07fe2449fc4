// A layer's shape and columns, and how its work is divided.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vectors.h"

namespace {

// The order of the fields is that of the array which Python passes.
struct Geometry {
  int64_t n, h, w, c, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw, groups, filters, columns, threads;
  int64_t taps() const { return kh * kw; }
  int64_t k() const { return groups * filters; }
};

struct Columns {
  const int32_t* tap_start;
  const int32_t* channel;
  const int64_t* order;
  bool in_order(int64_t outputs) const {
    for (int64_t i = 0; i < outputs; ++i)
      if (order[i] != i) return false;
    return true;
  }
};

// Whether every index is in its range and no output channel is named twice.
bool valid(const Geometry& g, const Columns& columns) {
  int64_t before = 0;
  for (int64_t i = 0; i < g.groups * (g.taps() + 1); ++i) {
    if (columns.tap_start[i] < before || (i % (g.taps() + 1) == 0 && columns.tap_start[i] != before)) return false;
    before = columns.tap_start[i];
  }
  if (before != g.columns) return false;
  bool inside = true;
  for (int64_t j = 0; j < g.columns; ++j) inside &= columns.channel[j] >= 0 && columns.channel[j] < g.c;
  std::vector<uint8_t> named(g.k());
  for (int64_t i = 0; i < g.k() && inside; ++i) {
    inside = columns.order[i] >= 0 && columns.order[i] < g.k() && !named[columns.order[i]];
    if (inside) named[columns.order[i]] = 1;
  }
  return inside;
}

struct Range {
  int64_t begin, end;
};

Range share(int64_t count, int64_t part, int64_t parts) { return {count * part / parts, count * (part + 1) / parts}; }

// Runs body(thread, threads) on at most `threads` threads.
template <class Body>
void parallel(int64_t threads, Body body) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(static_cast<int>(threads))
    body(static_cast<int64_t>(omp_get_thread_num()), static_cast<int64_t>(omp_get_num_threads()));
    return;
  }
#endif
  body(int64_t{0}, int64_t{1});
}

// The output positions o in [begin, end) for which o * stride + offset lies in [0, size).
Range inside(int64_t offset, int64_t stride, int64_t size, int64_t outputs) {
  const int64_t begin = offset < 0 ? (-offset + stride - 1) / stride : 0;
  const int64_t end = offset >= size ? 0 : (size - 1 - offset) / stride + 1;
  return {std::min(begin, outputs), std::max(std::min(begin, outputs), std::min(end, outputs))};
}

// Of the rows or columns of the input, those that a tap meets: with a stride, a small kernel passes over some.
std::vector<uint8_t> met(int64_t taps, int64_t dilation, int64_t padding, int64_t stride, int64_t size,
                         int64_t outputs) {
  std::vector<uint8_t> flags(size);
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t offset = t * dilation - padding;
    const Range valid = inside(offset, stride, size, outputs);
    for (int64_t o = valid.begin; o < valid.end; ++o) flags[o * stride + offset] = 1;
  }
  return flags;
}

// Calls run(L, vectors, first) for slices of vectors that cover a group's filters.
template <int L, class Run>
void each_slice(int64_t filters, Run run) {
  int64_t first = 0;
  auto slice = [&](auto lanes, auto vectors) {
    constexpr int step = decltype(lanes)::value * decltype(vectors)::value;
    for (; filters - first >= step; first += step) run(lanes, vectors, first);
  };
  using std::integral_constant;
  if constexpr (kMaxVectors == 4) {
    slice(integral_constant<int, L>(), integral_constant<int, 4>());
    slice(integral_constant<int, L>(), integral_constant<int, 3>());
  }
  slice(integral_constant<int, L>(), integral_constant<int, 2>());
  slice(integral_constant<int, L>(), integral_constant<int, 1>());
  if constexpr (L > 8) slice(integral_constant<int, 8>(), integral_constant<int, 1>());
  if constexpr (L > 4) slice(integral_constant<int, 4>(), integral_constant<int, 1>());
  slice(integral_constant<int, 1>(), integral_constant<int, 1>());
}

// The columns [begin, end) in as few jobs of equal size as possible, no larger than `most`.
template <class Emit>
void split(int64_t begin, int64_t end, int64_t most, Emit emit) {
  const int64_t jobs = (end - begin + most - 1) / most;
  for (int64_t i = 0; i < jobs; ++i) {
    const Range part = share(end - begin, i, jobs);
    emit(begin + part.begin, part.end - part.begin);
  }
}

// The batch in whole vectors of samples. What remains goes in narrower ones where `kNarrow`, else in one that is not
// full. Calls run(lanes, sample, rows).
template <bool kNarrow, class Run>
void each_unit(const Geometry& g, int64_t rows, int64_t thread, int64_t threads, Run run) {
  std::vector<std::pair<int64_t, int>> chunks;
  for (int64_t n = 0; n < g.n;) {
    const int lanes = !kNarrow || g.n - n > 8 ? kWidth : std::min(g.n - n > 4 ? 8 : 4, kWidth);
    chunks.emplace_back(n, lanes);
    n += lanes;
  }
  const Range mine = share(static_cast<int64_t>(chunks.size()) * rows, thread, threads);
  for (int64_t unit = mine.begin; unit < mine.end;) {
    const auto [sample, lanes] = chunks[unit / rows];
    const int64_t begin = unit % rows, end = std::min(rows, begin + mine.end - unit);
    if (lanes == kWidth) run(std::integral_constant<int, kWidth>(), sample, Range{begin, end});
    if constexpr (kNarrow && kWidth > 8)
      if (lanes == 8) run(std::integral_constant<int, 8>(), sample, Range{begin, end});
    if constexpr (kNarrow && kWidth > 4)
      if (lanes == 4) run(std::integral_constant<int, 4>(), sample, Range{begin, end});
    unit += end - begin;
  }
}

}  // namespace
