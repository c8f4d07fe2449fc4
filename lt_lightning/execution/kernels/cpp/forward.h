// The forward pass.

#pragma once

#include <array>
#include <cstring>
#include <memory>

#include "geometry.h"

namespace {

// ----------------------------------------------------------------------------------------- lanes are filters: forward
// An input value is broadcast; a tile of pixels shares the weights it loads. For the samples that do not fill a vector.

// Output pixels in the order of (samples of a chunk) within (rows, columns) within (chunks): neighbours in a tile are
// the same position of several samples, so that what lies outside the image is outside for the whole tile.
struct Cursor {
  const Geometry& g;
  int64_t chunk, first, count, n, row, column;
  Cursor(const Geometry& geometry, int64_t samples, int64_t index) : g(geometry), chunk(samples) {
    const int64_t per_chunk = chunk * g.oh * g.ow;
    first = index / per_chunk * chunk;
    count = std::min(chunk, g.n - first);
    const int64_t rest = index % per_chunk, position = rest / count;
    n = first + rest % count;
    row = position / g.ow;
    column = position % g.ow;
  }
  void next() {
    if (++n < first + count) return;
    n = first;
    if (++column < g.ow) return;
    column = 0;
    if (++row < g.oh) return;
    row = 0;
    first += chunk;
    count = std::min(chunk, g.n - first);
    n = first;
  }
};

// The pixels that a tile reads at one tap; a pixel outside the image reads zeros.
template <int P>
struct Tap {
  const float* pixel[P];
  int64_t tap;
};

// One group's filters at one tile of pixels. Not inlined: the sums need nearly every register there is.
template <int L, int V, int P>
[[gnu::noinline]] void multiply(const std::vector<Tap<P>>& active, const int32_t* start, const int32_t* channels,
                                const float* weights, int64_t stride, const int64_t* order, bool in_order,
                                float* const (&out)[P], int count) {
  Vec<float, L> sum[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[p][v] = Vec<float, L>{};
  for (const Tap<P>& tap : active) {
    const int32_t* channel = channels + start[tap.tap];
    const int32_t* const end = channels + start[tap.tap + 1];
    const float* weight = weights + start[tap.tap] * stride;
    const float* at[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) at[p] = tap.pixel[p];
    for (; channel < end; ++channel, weight += stride) {
      const int64_t c = *channel;
      Vec<float, L> w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = load<L>(weight + v * L);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        const float x = at[p][c];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[p][v] += x * w[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    if (p >= count) break;
    float filters[V * L];
    float* const to = in_order ? out[p] + order[0] : filters;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store<L>(to + v * L, sum[p][v]);
    if (!in_order)
      for (int i = 0; i < V * L; ++i) out[p][order[i]] = filters[i];
  }
}

template <int L, int V>
void forward_slice(const Geometry& g, const Columns& columns, const float* x, const float* weight, int64_t slice,
                   float* y, int64_t thread, int64_t threads) {
  constexpr int P = tile(V);
  const int64_t taps = g.taps(), pixels = g.n * g.oh * g.ow, tiles = (pixels + P - 1) / P;
  const bool in_order = columns.in_order(g.k());
  const Range mine = share(tiles, thread, threads);
  if (mine.begin == mine.end) return;
  const std::vector<float> zeros(g.c, 0.0f);
  std::vector<Tap<P>> active;
  active.reserve(taps);
  std::vector<int64_t> offset(taps);
  for (int64_t t = 0; t < taps; ++t) offset[t] = (t / g.kw * g.dh * g.w + t % g.kw * g.dw) * g.c;

  Cursor cursor(g, g.oh * g.ow <= 64 ? P : 1, mine.begin * P);
  for (int64_t b = mine.begin; b < mine.end; ++b) {
    const int count = static_cast<int>(std::min<int64_t>(P, pixels - b * P));
    int64_t base[P], row[P], column[P];
    float* out[P];
    bool interior = count == P;
    for (int p = 0; p < count; ++p, cursor.next()) {
      row[p] = cursor.row * g.sh - g.ph;
      column[p] = cursor.column * g.sw - g.pw;
      base[p] = ((cursor.n * g.h + row[p]) * g.w + column[p]) * g.c;
      out[p] = y + ((cursor.n * g.oh + cursor.row) * g.ow + cursor.column) * g.k();
      interior = interior && row[p] >= 0 && row[p] + (g.kh - 1) * g.dh < g.h && column[p] >= 0 &&
                 column[p] + (g.kw - 1) * g.dw < g.w;
    }
    active.clear();
    for (int64_t t = 0; t < taps; ++t) {
      Tap<P> tap;
      tap.tap = t;
      bool any = interior;
      if (interior) {
        for (int p = 0; p < P; ++p) tap.pixel[p] = x + (base[p] + offset[t]);
      } else {
        const int64_t down = t / g.kw * g.dh, right = t % g.kw * g.dw;
        for (int p = 0; p < P; ++p) {
          const bool valid = p < count && row[p] + down >= 0 && row[p] + down < g.h && column[p] + right >= 0 &&
                             column[p] + right < g.w;
          tap.pixel[p] = valid ? x + (base[p] + offset[t]) : zeros.data();
          any = any || valid;
        }
      }
      if (any) active.push_back(tap);
    }
    for (int64_t group = 0; group < g.groups; ++group)
      multiply<L, V, P>(active, columns.tap_start + group * (taps + 1), columns.channel, weight + slice, g.filters,
                        columns.order + group * g.filters + slice, in_order, out, count);
  }
}

// -------------------------------------------------------------------------------------------------- lanes are samples
// A channel is then one vector, wherever it lies: gathering and scattering channels, and putting filters in order, cost
// nothing. Rows of an image are turned to (pixel, channel, sample) once, rows of the result back once; a ring holds the
// turned rows that are still needed.

// Columns in words: those of a tap one by one, or in twos, their weights side by side.
template <class T>
struct WordColumns {
  const int32_t* tap_start;
  const int32_t* channel;
  const Word<T>* weight;
};

template <class T, int L>
struct Source {  // of one tap at one output pixel
  const T* x;
  int64_t begin, end;
};

template <class T, int L, int F>
void sum_columns(const std::vector<Source<T, L>>& sources, const int32_t* channel, const Word<T>* weight,
                 int64_t stride, const int64_t* order, T* to) {
  Vec<float, L> sum[F];
#pragma GCC unroll 32
  for (int f = 0; f < F; ++f) sum[f] = Vec<float, L>{};
  for (const Source<T, L>& source : sources) {
    const Word<T>* w = weight + source.begin * stride;
    for (int64_t j = source.begin; j < source.end; ++j, w += stride) {
      const Vec<Word<T>, L> x = word<L>(source.x, channel + j * kPerWord<T>);
#pragma GCC unroll 32
      for (int f = 0; f < F; ++f) sum[f] = dot<L>(sum[f], w[f], x);
    }
  }
#pragma GCC unroll 32
  for (int f = 0; f < F; ++f) store<L>(to + order[f] * L, rounded<T, float, L>(sum[f]));
}

template <class T, int L, int... F>
constexpr auto sum_columns_table(std::integer_sequence<int, F...>) {
  return std::array<void (*)(const std::vector<Source<T, L>>&, const int32_t*, const Word<T>*, int64_t, const int64_t*,
                             T*),
                    sizeof...(F)>{sum_columns<T, L, F + 1>...};
}

template <class T, int L>
void forward_rows(const Geometry& g, const WordColumns<T>& columns, const int64_t* order, const T* x, T* y,
                  int64_t sample, Range rows) {
  static constexpr auto table = sum_columns_table<T, L>(std::make_integer_sequence<int, kSums>());
  const int64_t k = g.k(), taps = g.taps(), samples = std::min<int64_t>(L, g.n - sample);
  const int64_t slots = (g.kh - 1) * g.dh + 1, pixel = (g.c + kPerWord<T> - 1) * L;
  std::vector<T> ring(slots * g.w * pixel), sums(g.ow * k * L);
  std::vector<Source<T, L>> sources;
  sources.reserve(taps);
  const std::vector<uint8_t> read = met(g.kw, g.dw, g.pw, g.sw, g.w, g.ow);
  int64_t turned = -1;
  for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
    const int64_t top = oh * g.sh - g.ph, last = std::min(top + (g.kh - 1) * g.dh, g.h - 1);
    for (turned = std::max(turned, top - 1); turned < last;) {
      ++turned;
      for (int64_t iw = 0; iw < g.w; ++iw)
        if (read[iw])
          gather_samples<L>(x + ((sample * g.h + turned) * g.w + iw) * g.c, g.h * g.w * g.c, samples, g.c,
                            &ring[(turned % slots * g.w + iw) * pixel], [](int64_t i) { return i; });
    }
    for (int64_t group = 0; group < g.groups; ++group) {
      const int32_t* start = columns.tap_start + group * (taps + 1);
      for (int64_t ow = 0; ow < g.ow; ++ow) {
        sources.clear();
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t ih = top + t / g.kw * g.dh, iw = ow * g.sw - g.pw + t % g.kw * g.dw;
          if (ih >= 0 && ih < g.h && iw >= 0 && iw < g.w && start[t] < start[t + 1])
            sources.push_back({&ring[(ih % slots * g.w + iw) * pixel], start[t], start[t + 1]});
        }
        split(0, g.filters, kSums, [&](int64_t first, int64_t count) {
          table[count - 1](sources, columns.channel, columns.weight + first, g.filters,
                           order + group * g.filters + first, &sums[ow * k * L]);
        });
      }
    }
    for (int64_t ow = 0; ow < g.ow; ++ow)
      scatter_samples<L>(&sums[ow * k * L], g.oh * g.ow * k, samples, k,
                         y + ((sample * g.oh + oh) * g.ow + ow) * k);
  }
}

// ---------------------------------------------------------------------------------------------------------- the pass

void forward_filters(const Geometry& g, const Columns& columns, const float* weight, const float* x, float* y,
                     int64_t thread, int64_t threads) {
  each_slice<kWidth>(g.filters, [&](auto lanes, auto vectors, int64_t slice) {
    forward_slice<decltype(lanes)::value, decltype(vectors)::value>(g, columns, x, weight, slice, y, thread, threads);
  });
}

template <class T>
void forward_samples(const Geometry& g, const WordColumns<T>& words, const int64_t* order, const T* x, T* y,
                     int64_t thread, int64_t threads) {
  each_unit<false>(g, g.oh, thread, threads, [&](auto lanes, int64_t sample, Range rows) {
    forward_rows<T, decltype(lanes)::value>(g, words, order, x, y, sample, rows);
  });
}

void forward(const Geometry& g, const Columns& columns, const float* weight, const float* x, float* y) {
  Geometry filled = g, rest = g;  // the samples that fill vectors, and the others
  filled.n = g.n / kWidth * kWidth;
  rest.n = g.n - filled.n;
  const float* rest_x = x + filled.n * g.h * g.w * g.c;
  float* rest_y = y + filled.n * g.oh * g.ow * g.k();
  const WordColumns<float> words{columns.tap_start, columns.channel, weight};
  parallel(g.threads, [&](int64_t thread, int64_t threads) {
    forward_samples(filled, words, columns.order, x, y, thread, threads);
    forward_filters(rest, columns, weight, rest_x, rest_y, thread, threads);
  });
}

#ifdef __AVX512BF16__
// The columns of every tap in twos. An odd one is joined by the channel after the last, which is zero.
struct PairedColumns {
  std::vector<int32_t> tap_start, channel;
  std::unique_ptr<uint32_t[]> weight;

  PairedColumns(const Geometry& g, const Columns& columns, const Bf16* single) : tap_start(g.groups * (g.taps() + 1)) {
    const int64_t lists = static_cast<int64_t>(tap_start.size());
    const auto count = [&](int64_t i) { return columns.tap_start[i + 1] - columns.tap_start[i]; };  // 0 between groups
    for (int64_t i = 0; i + 1 < lists; ++i)
      tap_start[i + 1] = tap_start[i] + static_cast<int32_t>(words<Bf16>(count(i)));
    channel.resize(2 * (lists ? tap_start.back() : 0));
    weight.reset(new uint32_t[channel.size() / 2 * g.filters]);
    parallel(g.threads, [&](int64_t thread, int64_t threads) {
      const Range mine = share(lists - 1, thread, threads);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int32_t end = columns.tap_start[i + 1];
        int64_t to = tap_start[i];
        for (int64_t j = columns.tap_start[i]; j < end; j += 2, ++to) {
          const bool odd = j + 1 == end;
          channel[2 * to] = columns.channel[j];
          channel[2 * to + 1] = odd ? static_cast<int32_t>(g.c) : columns.channel[j + 1];
          const Bf16* of_column = single + j * g.filters;
          pair_rows(of_column, odd ? nullptr : of_column + g.filters, g.filters, &weight[to * g.filters]);
        }
      }
    });
  }
};

void widen(const Bf16* from, Range range, float* to) {
  for (int64_t i = range.begin; i < range.end; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

void narrow(const float* from, Range range, Bf16* to) {
  int64_t i = range.begin;
  for (; i + kWidth <= range.end; i += kWidth)
    store<kWidth>(to + i, rounded<Bf16, float, kWidth>(load<kWidth>(from + i)));
  for (; i < range.end; ++i) to[i] = rounded<Bf16, float, kWidth>(Vec<float, kWidth>{} + from[i])[0];
}

void forward_in_float(const Geometry& g, const Columns& columns, const Bf16* weight, const Bf16* x, Bf16* y) {
  const int64_t x_size = g.n * g.h * g.w * g.c, y_size = g.n * g.oh * g.ow * g.k(), size = g.columns * g.filters;
  const std::unique_ptr<float[]> wide_x(new float[x_size]), wide_y(new float[y_size]), wide_weight(new float[size]);
  parallel(g.threads, [&](int64_t thread, int64_t threads) {
    widen(x, share(x_size, thread, threads), wide_x.get());
    widen(weight, share(size, thread, threads), wide_weight.get());
  });
  parallel(g.threads, [&](int64_t thread, int64_t threads) {
    forward_filters(g, columns, wide_weight.get(), wide_x.get(), wide_y.get(), thread, threads);
  });
  parallel(g.threads, [&](int64_t thread, int64_t threads) {
    narrow(wide_y.get(), share(y_size, thread, threads), y);
  });
}

void forward(const Geometry& g, const Columns& columns, const Bf16* weight, const Bf16* x, Bf16* y) {
  // A vector of samples half full is still faster than the other form, which multiplies single values.
  Geometry filled = g, rest = g;
  filled.n = std::min(g.n, (g.n + kWidth / 2) / kWidth * kWidth);
  rest.n = g.n - filled.n;
  if (filled.n > 0) {
    const PairedColumns paired(g, columns, weight);
    const WordColumns<Bf16> words{paired.tap_start.data(), paired.channel.data(), paired.weight.get()};
    parallel(g.threads, [&](int64_t thread, int64_t threads) {
      forward_samples(filled, words, columns.order, x, y, thread, threads);
    });
  }
  if (rest.n > 0)
    forward_in_float(rest, columns, weight, x + filled.n * g.h * g.w * g.c, y + filled.n * g.oh * g.ow * g.k());
}
#endif

}  // namespace
