// The gradient of the weight.

#pragma once

#include <array>

#include "geometry.h"

namespace {

// -------------------------------------------------------------------------- lanes are filters: gradient of the weight
// The sums of a tile of columns stay in registers over a chunk of pixels that stays in the cache.

constexpr int64_t kChunkBytes = 256 * 1024;

template <class T>
struct Pixels {  // of one tap: the input and the output gradient at every output pixel whose input is inside
  std::vector<const Word<T>*> x, dy;
  int64_t count;
};

template <class T, int L, int V, int C>
void correlate(const Pixels<T>& pixels, const int32_t* channel, int64_t first, int64_t stride, float* dw) {
  int64_t c[C];
  for (int j = 0; j < C; ++j) c[j] = channel[j];
  Vec<float, L> sum[C][V];
#pragma GCC unroll 32
  for (int j = 0; j < C; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[j][v] = Vec<float, L>{};
  for (int64_t i = 0; i < pixels.count; ++i) {
    const Word<T>* x = pixels.x[i];
    const Word<T>* dy = pixels.dy[i] + first;
    Vec<Word<T>, L> d[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) d[v] = load<L>(dy + v * L);
#pragma GCC unroll 32
    for (int j = 0; j < C; ++j) {
      const Word<T> value = x[c[j]];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[j][v] = dot<L>(sum[j][v], value, d[v]);
    }
  }
#pragma GCC unroll 32
  for (int j = 0; j < C; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* into = dw + j * stride + v * L;
      store<L>(into, load<L>(into) + sum[j][v]);
    }
}

template <class T, int L, int V, int... C>
constexpr auto correlate_table(std::integer_sequence<int, C...>) {
  return std::array<void (*)(const Pixels<T>&, const int32_t*, int64_t, int64_t, float*), sizeof...(C)>{
      correlate<T, L, V, C + 1>...};
}

// Rows of the input in words. Those of bfloat16 hold two samples each and are joined when they are needed.
template <class T>
class InputRows;

template <>
class InputRows<float> {
 public:
  InputRows(const Geometry& g, const float* x) : g_(g), x_(x) {}
  void hold(Range) {}
  const float* row(int64_t image, int64_t ih) const { return x_ + (image * g_.h + ih) * g_.w * g_.c; }

 private:
  const Geometry& g_;
  const float* x_;
};

template <>
class InputRows<Bf16> {
 public:
  InputRows(const Geometry& g, const Bf16* x) : g_(g), x_(x) {}

  // Joins the rows that these rows of the output meet.
  void hold(Range rows) {
    const int64_t size = g_.w * g_.c, last = (rows.end - 1) / g_.oh;
    first_ = rows.begin / g_.oh;
    place_.clear();
    int64_t held = 0;
    for (int64_t image = first_; image <= last; ++image) {
      const int64_t top = std::max(rows.begin - image * g_.oh, int64_t{0}) * g_.sh - g_.ph;
      const int64_t bottom = (std::min(rows.end - image * g_.oh, g_.oh) - 1) * g_.sh - g_.ph + (g_.kh - 1) * g_.dh;
      const int64_t begin = std::clamp(top, int64_t{0}, g_.h), end = std::clamp(bottom + 1, begin, g_.h);
      joined_.resize(std::max(joined_.size(), static_cast<size_t>((held + end - begin) * size)));
      const Bf16* from = x_ + (2 * image * g_.h + begin) * size;
      pair_rows(from, 2 * image + 1 < g_.n ? from + g_.h * size : nullptr, (end - begin) * size,
                joined_.data() + held * size);
      place_.push_back(held - begin);
      held += end - begin;
    }
  }
  const uint32_t* row(int64_t image, int64_t ih) const {
    return joined_.data() + (place_[image - first_] + ih) * g_.w * g_.c;
  }

 private:
  const Geometry& g_;
  const Bf16* x_;
  int64_t first_ = 0;
  std::vector<int64_t> place_;  // row of `joined_` at which an image's first row would be
  std::vector<uint32_t> joined_;
};

// Rows of the output's gradient in words, filters in the order of the groups.
template <class T>
class GradientRows {
 public:
  GradientRows(const Geometry& g, const Columns& columns, const T* dy, int64_t most)
      : size_(g.ow * g.k()), g_(g), dy_(dy), in_order_(columns.in_order(g.k())),
        order_(columns.order, columns.order + g.k()) {
    if (kPerWord<T> > 1 || !in_order_) ordered_.resize(most * size_);
    if (kPerWord<T> > 1 && !in_order_) joined_.resize(size_);
  }

  // A pointer to them.
  const Word<T>* hold(Range rows) {
    if constexpr (kPerWord<T> == 1)
      if (in_order_) return dy_ + rows.begin * size_;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      Word<T>* to = &ordered_[(row - rows.begin) * size_];
      if (in_order_)
        join(row, to);
      else
        sort(join(row, joined_.data()), to);
    }
    return ordered_.data();
  }

 private:
  const Word<T>* join(int64_t row, Word<T>* to) const {
    if constexpr (kPerWord<T> == 1) {
      return dy_ + row * size_;
    } else {
      const int64_t image = row / g_.oh;
      const T* from = dy_ + (row + image * g_.oh) * size_;
      pair_rows(from, 2 * image + 1 < g_.n ? from + g_.oh * size_ : nullptr, size_, to);
      return to;
    }
  }
  void sort(const Word<T>* from, Word<T>* to) const {
    const int64_t k = g_.k();
    for (int64_t pixel = 0; pixel < g_.ow; ++pixel, from += k, to += k)
      for (int64_t i = 0; i < k; ++i) to[i] = from[order_[i]];
  }

  int64_t size_;
  const Geometry& g_;
  const T* dy_;
  bool in_order_;
  std::vector<int32_t> order_;
  std::vector<Word<T>> ordered_, joined_;
};

// Adds what these rows of the output give; they are counted over samples, or over twos of samples.
template <class T>
void weight_gradient_rows(const Geometry& g, const Columns& columns, const T* x, const T* dy, Range rows, float* dw) {
  const int64_t taps = g.taps(), k = g.k();
  const int64_t chunk = std::max<int64_t>(kChunkBytes / ((g.c + k) * 4 * g.ow), 1);
  InputRows<T> x_rows(g, x);
  GradientRows<T> dy_rows(g, columns, dy, chunk);
  std::vector<Pixels<T>> pixels(taps);
  for (Pixels<T>& of_tap : pixels) {
    of_tap.x.resize(chunk * g.ow);
    of_tap.dy.resize(chunk * g.ow);
  }
  for (int64_t from = rows.begin; from < rows.end; from += chunk) {
    const int64_t end = std::min(from + chunk, rows.end);
    x_rows.hold({from, end});
    const Word<T>* dy_chunk = dy_rows.hold({from, end});
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t down = t / g.kw * g.dh - g.ph, right = t % g.kw * g.dw - g.pw;
      const Range valid = inside(right, g.sw, g.w, g.ow);
      Pixels<T>& of_tap = pixels[t];
      of_tap.count = 0;
      for (int64_t row = from; row < end; ++row) {
        const int64_t ih = row % g.oh * g.sh + down;
        if (ih < 0 || ih >= g.h) continue;
        const Word<T>* x_row = x_rows.row(row / g.oh, ih) + right * g.c;
        const Word<T>* dy_row = dy_chunk + (row - from) * g.ow * k;
        for (int64_t ow = valid.begin; ow < valid.end; ++ow, ++of_tap.count) {
          of_tap.x[of_tap.count] = x_row + ow * g.sw * g.c;
          of_tap.dy[of_tap.count] = dy_row + ow * k;
        }
      }
    }
    each_slice<kWidth>(g.filters, [&](auto lanes, auto vectors, int64_t slice) {
      constexpr int L = decltype(lanes)::value, V = decltype(vectors)::value, C = tile(V);
      static constexpr auto table = correlate_table<T, L, V>(std::make_integer_sequence<int, C>());
      for (int64_t group = 0; group < g.groups; ++group)
        for (int64_t t = 0; t < taps; ++t) {
          const int32_t* start = columns.tap_start + group * (taps + 1) + t;
          split(start[0], start[1], C, [&](int64_t column, int64_t count) {
            table[count - 1](pixels[t], columns.channel + column, group * g.filters + slice, g.filters,
                             dw + column * g.filters + slice);
          });
        }
    });
  }
}

template <class T>
void weight_gradient(const Geometry& g, const Columns& columns, const T* x, const T* dy, float* dw) {
  const int64_t size = g.columns * g.filters;
  std::vector<std::vector<float>> sums(std::max<int64_t>(g.threads - 1, 0));
  std::fill(dw, dw + size, 0.0f);
  parallel(g.threads, [&](int64_t thread, int64_t threads) {
    if (thread > 0) sums[thread - 1].assign(size, 0.0f);
    weight_gradient_rows(g, columns, x, dy, share(words<T>(g.n) * g.oh, thread, threads),
                         thread > 0 ? sums[thread - 1].data() : dw);
  });
  parallel(g.threads, [&](int64_t thread, int64_t threads) {
    const Range mine = share(size, thread, threads);
    for (const std::vector<float>& part : sums)
      for (int64_t i = mine.begin; i < std::min<int64_t>(mine.end, part.size()); ++i) dw[i] += part[i];
  });
}

}  // namespace
