// Block convolution in float32 on the CPU: a convolution whose filters come in groups, each with its own columns.
//
// A column is one input channel at one kernel position (tap). The filters of a group share its columns, so a group is
// a dense matrix (columns x R filters). Tensors are NHWC.
//
//   tap_start  [G][T + 1]  the columns of group g at tap t are tap_start[g][t] .. tap_start[g][t + 1]
//   channel    [columns]   input channel of a column
//   weight     [columns][R]
//   order      [G * R]     output channel of a group's filter
//
// Nothing is unfolded in memory, and taps outside the image cost nothing where a whole tile misses it. Written with the
// vector extensions of GCC and Clang: the flags choose the instruction set.

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kWidth = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kWidth = 4, kRegisters = 32;
#else
constexpr int kWidth = 4, kRegisters = 16;
#endif
constexpr int kSums = kRegisters == 32 ? 24 : 12;        // registers that hold sums; the rest hold operands
constexpr int kMaxVectors = kRegisters == 32 ? 4 : 2;    // of filters, side by side
constexpr int kMaxTile = 14;                             // pixels or columns of a tile: each needs an address register
constexpr int tile(int vectors) { return std::min(kSums / vectors, kMaxTile); }

template <int L>
struct Lanes {
  typedef float Vec __attribute__((vector_size(L * sizeof(float))));
  typedef float InMemory __attribute__((vector_size(L * sizeof(float)), aligned(sizeof(float)), may_alias));
  typedef int32_t Index __attribute__((vector_size(L * sizeof(int32_t))));
};
template <int L>
using Vec = typename Lanes<L>::Vec;

template <int L>
inline Vec<L> load(const float* from) {
  return *reinterpret_cast<const typename Lanes<L>::InMemory*>(from);
}
template <int L>
inline void store(float* to, Vec<L> value) {
  *reinterpret_cast<typename Lanes<L>::InMemory*>(to) = value;
}

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
  Vec<L> sum[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[p][v] = Vec<L>{};
  for (const Tap<P>& tap : active) {
    const int32_t* channel = channels + start[tap.tap];
    const int32_t* const end = channels + start[tap.tap + 1];
    const float* weight = weights + start[tap.tap] * stride;
    const float* at[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) at[p] = tap.pixel[p];
    for (; channel < end; ++channel, weight += stride) {
      const int64_t c = *channel;
      Vec<L> w[V];
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

// -------------------------------------------------------------------------- lanes are filters: gradient of the weight
// The sums of a tile of columns stay in registers over a chunk of pixels that stays in the cache.

constexpr int64_t kChunkBytes = 256 * 1024;

struct Pixels {  // of one tap: the input and the output gradient at every output pixel whose input is inside
  std::vector<const float*> x, dy;
  int64_t count;
};

template <int L, int V, int C>
void correlate(const Pixels& pixels, const int32_t* channel, int64_t first, int64_t stride, float* dw) {
  int64_t c[C];
  for (int j = 0; j < C; ++j) c[j] = channel[j];
  Vec<L> sum[C][V];
#pragma GCC unroll 32
  for (int j = 0; j < C; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[j][v] = Vec<L>{};
  for (int64_t i = 0; i < pixels.count; ++i) {
    const float* x = pixels.x[i];
    const float* dy = pixels.dy[i] + first;
    Vec<L> d[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) d[v] = load<L>(dy + v * L);
#pragma GCC unroll 32
    for (int j = 0; j < C; ++j) {
      const float value = x[c[j]];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[j][v] += value * d[v];
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

template <int L, int V, int... C>
constexpr auto correlate_table(std::integer_sequence<int, C...>) {
  return std::array<void (*)(const Pixels&, const int32_t*, int64_t, int64_t, float*), sizeof...(C)>{
      correlate<L, V, C + 1>...};
}

void weight_gradient_rows(const Geometry& g, const Columns& columns, const float* x, const float* dy, Range rows,
                          float* dw) {
  const int64_t taps = g.taps(), k = g.k();
  const int64_t chunk = std::max<int64_t>(kChunkBytes / ((g.c + k) * 4 * g.ow), 1);
  const bool in_order = columns.in_order(k);
  std::vector<float> ordered(in_order ? 0 : chunk * g.ow * k);
  std::vector<Pixels> pixels(taps);
  for (Pixels& of_tap : pixels) {
    of_tap.x.resize(chunk * g.ow);
    of_tap.dy.resize(chunk * g.ow);
  }
  for (int64_t from = rows.begin; from < rows.end; from += chunk) {
    const int64_t end = std::min(from + chunk, rows.end);
    const float* dy_chunk = dy + from * g.ow * k;
    if (!in_order) {
      for (int64_t pixel = 0; pixel < (end - from) * g.ow; ++pixel)
        for (int64_t i = 0; i < k; ++i) ordered[pixel * k + i] = dy_chunk[pixel * k + columns.order[i]];
      dy_chunk = ordered.data();
    }
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t down = t / g.kw * g.dh - g.ph, right = t % g.kw * g.dw - g.pw;
      const Range valid = inside(right, g.sw, g.w, g.ow);
      Pixels& of_tap = pixels[t];
      of_tap.count = 0;
      for (int64_t row = from; row < end; ++row) {
        const int64_t n = row / g.oh, ih = row % g.oh * g.sh + down;
        if (ih < 0 || ih >= g.h) continue;
        const float* x_row = x + ((n * g.h + ih) * g.w + right) * g.c;
        const float* dy_row = dy_chunk + (row - from) * g.ow * k;
        for (int64_t ow = valid.begin; ow < valid.end; ++ow, ++of_tap.count) {
          of_tap.x[of_tap.count] = x_row + ow * g.sw * g.c;
          of_tap.dy[of_tap.count] = dy_row + ow * k;
        }
      }
    }
    each_slice<kWidth>(g.filters, [&](auto lanes, auto vectors, int64_t slice) {
      constexpr int L = decltype(lanes)::value, V = decltype(vectors)::value, C = tile(V);
      static constexpr auto table = correlate_table<L, V>(std::make_integer_sequence<int, C>());
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

// -------------------------------------------------------------------------------------------------- lanes are samples
// A channel is then one vector, wherever it lies: gathering and scattering channels, and putting filters in order, cost
// nothing. Rows of an image are turned to (pixel, channel, sample) once, rows of the result back once; a ring holds the
// turned rows that are still needed.

template <int L, int D>
inline void exchange(Vec<L>& a, Vec<L>& b) {
#ifdef __clang__
  Vec<L> low, high;
  for (int i = 0; i < L; ++i) {
    low[i] = i & D ? b[i - D] : a[i];
    high[i] = i & D ? b[i] : a[i + D];
  }
#else
  typename Lanes<L>::Index to_low, to_high;
  for (int i = 0; i < L; ++i) {
    to_low[i] = i & D ? i - D + L : i;
    to_high[i] = i & D ? i + L : i + D;
  }
  const Vec<L> low = __builtin_shuffle(a, b, to_low), high = __builtin_shuffle(a, b, to_high);
#endif
  a = low;
  b = high;
}

template <int L, int D>
inline void transpose(Vec<L> (&square)[L]) {
  if constexpr (D > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if ((i & D) == 0) exchange<L, D>(square[i], square[i + D]);
    transpose<L, D / 2>(square);
  }
}

// from[sample][i] -> to[i][sample]; `samples` of the L lanes are there, the others become zero.
template <int L>
void gather_samples(const float* from, int64_t stride, int64_t samples, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + L <= count; i += L) {
    Vec<L> square[L];
#pragma GCC unroll 16
    for (int s = 0; s < L; ++s) square[s] = s < samples ? load<L>(from + s * stride + i) : Vec<L>{};
    transpose<L, L / 2>(square);
#pragma GCC unroll 16
    for (int s = 0; s < L; ++s) store<L>(to + (i + s) * L, square[s]);
  }
  for (; i < count; ++i)
    for (int s = 0; s < L; ++s) to[i * L + s] = s < samples ? from[s * stride + i] : 0.0f;
}

template <int L>
void scatter_samples(const float* from, int64_t stride, int64_t samples, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + L <= count; i += L) {
    Vec<L> square[L];
#pragma GCC unroll 16
    for (int s = 0; s < L; ++s) square[s] = load<L>(from + (i + s) * L);
    transpose<L, L / 2>(square);
#pragma GCC unroll 16
    for (int s = 0; s < L; ++s)
      if (s < samples) store<L>(to + s * stride + i, square[s]);
  }
  for (; i < count; ++i)
    for (int64_t s = 0; s < samples; ++s) to[s * stride + i] = from[i * L + s];
}

constexpr int kSampleTile = kSums;  // filters or columns of a tile

// The batch in whole vectors of samples; what remains goes in narrower ones. Calls run(lanes, sample, rows).
template <class Run>
void each_unit(const Geometry& g, int64_t rows, int64_t thread, int64_t threads, Run run) {
  std::vector<std::pair<int64_t, int>> chunks;
  for (int64_t n = 0; n < g.n;) {
    const int lanes = g.n - n > 8 ? kWidth : std::min(g.n - n > 4 ? 8 : 4, kWidth);
    chunks.emplace_back(n, lanes);
    n += lanes;
  }
  const Range mine = share(static_cast<int64_t>(chunks.size()) * rows, thread, threads);
  for (int64_t unit = mine.begin; unit < mine.end;) {
    const auto [sample, lanes] = chunks[unit / rows];
    const int64_t begin = unit % rows, end = std::min(rows, begin + mine.end - unit);
    if (lanes == 4) run(std::integral_constant<int, 4>(), sample, Range{begin, end});
    if constexpr (kWidth >= 8)
      if (lanes == 8) run(std::integral_constant<int, 8>(), sample, Range{begin, end});
    if constexpr (kWidth >= 16)
      if (lanes == 16) run(std::integral_constant<int, 16>(), sample, Range{begin, end});
    unit += end - begin;
  }
}

// ----------------------------------------------------------------------------------------- lanes are samples: forward

template <int L>
struct Source {  // of one tap at one output pixel
  const float* x;
  int64_t begin, end;
};

template <int L, int F>
void sum_columns(const std::vector<Source<L>>& sources, const int32_t* channel, const float* weight, int64_t stride,
                 const int64_t* order, float* to) {
  Vec<L> sum[F];
#pragma GCC unroll 32
  for (int f = 0; f < F; ++f) sum[f] = Vec<L>{};
  for (const Source<L>& source : sources) {
    const float* w = weight + source.begin * stride;
    for (int64_t j = source.begin; j < source.end; ++j, w += stride) {
      const Vec<L> x = load<L>(source.x + static_cast<int64_t>(channel[j]) * L);
#pragma GCC unroll 32
      for (int f = 0; f < F; ++f) sum[f] += w[f] * x;
    }
  }
#pragma GCC unroll 32
  for (int f = 0; f < F; ++f) store<L>(to + order[f] * L, sum[f]);
}

template <int L, int... F>
constexpr auto sum_columns_table(std::integer_sequence<int, F...>) {
  return std::array<void (*)(const std::vector<Source<L>>&, const int32_t*, const float*, int64_t, const int64_t*,
                             float*),
                    sizeof...(F)>{sum_columns<L, F + 1>...};
}

template <int L>
void forward_rows(const Geometry& g, const Columns& columns, const float* weight, const float* x, float* y,
                  int64_t sample, Range rows) {
  static constexpr auto table = sum_columns_table<L>(std::make_integer_sequence<int, kSampleTile>());
  const int64_t k = g.k(), taps = g.taps(), samples = std::min<int64_t>(L, g.n - sample);
  const int64_t slots = (g.kh - 1) * g.dh + 1;
  std::vector<float> ring(slots * g.w * g.c * L), sums(g.ow * k * L);
  std::vector<Source<L>> sources;
  sources.reserve(taps);
  int64_t turned = -1;
  for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
    const int64_t top = oh * g.sh - g.ph, last = std::min(top + (g.kh - 1) * g.dh, g.h - 1);
    for (turned = std::max(turned, top - 1); turned < last;) {
      ++turned;
      for (int64_t iw = 0; iw < g.w; ++iw)
        gather_samples<L>(x + ((sample * g.h + turned) * g.w + iw) * g.c, g.h * g.w * g.c, samples, g.c,
                          &ring[(turned % slots * g.w + iw) * g.c * L]);
    }
    for (int64_t group = 0; group < g.groups; ++group) {
      const int32_t* start = columns.tap_start + group * (taps + 1);
      for (int64_t ow = 0; ow < g.ow; ++ow) {
        sources.clear();
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t ih = top + t / g.kw * g.dh, iw = ow * g.sw - g.pw + t % g.kw * g.dw;
          if (ih >= 0 && ih < g.h && iw >= 0 && iw < g.w && start[t] < start[t + 1])
            sources.push_back({&ring[(ih % slots * g.w + iw) * g.c * L], start[t], start[t + 1]});
        }
        split(0, g.filters, kSampleTile, [&](int64_t first, int64_t count) {
          table[count - 1](sources, columns.channel, weight + first, g.filters,
                           columns.order + group * g.filters + first, &sums[ow * k * L]);
        });
      }
    }
    for (int64_t ow = 0; ow < g.ow; ++ow)
      scatter_samples<L>(&sums[ow * k * L], g.oh * g.ow * k, samples, k,
                         y + ((sample * g.oh + oh) * g.ow + ow) * k);
  }
}

// --------------------------------------------------------------------------- lanes are samples: gradient of the input

// Some columns of one group at one tap, their weights turned to (filter, column).
struct Job {
  int64_t column, count, panel;
};

template <int L>
struct Strip {  // pixels of a row: from, to, and how far apart they lie
  const float* from;
  float* to;
  int64_t pixels, from_step, to_step, filters;
  const int64_t* order;
};

template <int L, int C>
void add_columns(const Strip<L>& strip, const int32_t* channel, const float* panel) {
  const float* from = strip.from;
  float* to = strip.to;
  for (int64_t pixel = 0; pixel < strip.pixels; ++pixel, from += strip.from_step, to += strip.to_step) {
    Vec<L> sum[C];
#pragma GCC unroll 32
    for (int j = 0; j < C; ++j) sum[j] = Vec<L>{};
    const float* w = panel;
    for (int64_t r = 0; r < strip.filters; ++r, w += C) {
      const Vec<L> dy = load<L>(from + strip.order[r] * L);
#pragma GCC unroll 32
      for (int j = 0; j < C; ++j) sum[j] += w[j] * dy;
    }
#pragma GCC unroll 32
    for (int j = 0; j < C; ++j) {
      float* into = to + static_cast<int64_t>(channel[j]) * L;
      store<L>(into, load<L>(into) + sum[j]);
    }
  }
}

template <int L, int... C>
constexpr auto add_columns_table(std::integer_sequence<int, C...>) {
  return std::array<void (*)(const Strip<L>&, const int32_t*, const float*), sizeof...(C)>{add_columns<L, C + 1>...};
}

template <int L>
void input_gradient_rows(const Geometry& g, const Columns& columns, const std::vector<Job>& jobs,
                         const std::vector<int64_t>& first_job, const float* panels, const float* dy, float* dx,
                         int64_t sample, Range rows) {
  static constexpr auto table = add_columns_table<L>(std::make_integer_sequence<int, kSampleTile>());
  const int64_t k = g.k(), taps = g.taps(), samples = std::min<int64_t>(L, g.n - sample);
  const int64_t slots = (g.kh - 1) * g.dh / g.sh + 1;  // rows of the output that one row of the input meets
  std::vector<float> ring(slots * g.ow * k * L), sums(g.w * g.c * L);
  int64_t turned = -1;  // rows of the output up to here have been turned
  for (int64_t ih = rows.begin; ih < rows.end; ++ih) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    const int64_t last = std::min((ih + g.ph) / g.sh, g.oh - 1);
    for (turned = std::max(turned, last - slots); turned < last;) {
      ++turned;
      for (int64_t ow = 0; ow < g.ow; ++ow)
        gather_samples<L>(dy + ((sample * g.oh + turned) * g.ow + ow) * k, g.oh * g.ow * k, samples, k,
                          &ring[(turned % slots * g.ow + ow) * k * L]);
    }
    for (int64_t group = 0; group < g.groups; ++group)
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t position = ih + g.ph - t / g.kw * g.dh, oh = position / g.sh;
        if (position < 0 || position % g.sh || oh >= g.oh) continue;
        const int64_t offset = t % g.kw * g.dw - g.pw;
        const Range valid = inside(offset, g.sw, g.w, g.ow);
        const Strip<L> strip{&ring[(oh % slots * g.ow + valid.begin) * k * L],
                             sums.data() + (valid.begin * g.sw + offset) * g.c * L,
                             valid.end - valid.begin,
                             k * L,
                             g.sw * g.c * L,
                             g.filters,
                             columns.order + group * g.filters};
        if (strip.pixels == 0) continue;
        for (int64_t i = first_job[group * taps + t]; i < first_job[group * taps + t + 1]; ++i)
          table[jobs[i].count - 1](strip, columns.channel + jobs[i].column, panels + jobs[i].panel);
      }
    for (int64_t iw = 0; iw < g.w; ++iw)
      scatter_samples<L>(&sums[iw * g.c * L], g.h * g.w * g.c, samples, g.c,
                         dx + ((sample * g.h + ih) * g.w + iw) * g.c);
  }
}

}  // namespace

extern "C" {  // each returns whether the indices are valid; if not, nothing has been done

bool block_conv_forward(const Geometry* g, const int32_t* tap_start, const int32_t* channel, const int64_t* order,
                        const float* weight, const float* x, float* y) {
  const Columns columns{tap_start, channel, order};
  if (!valid(*g, columns)) return false;
  Geometry filled = *g, rest = *g;  // the samples that fill vectors, and the others
  filled.n = g->n / kWidth * kWidth;
  rest.n = g->n - filled.n;
  const float* rest_x = x + filled.n * g->h * g->w * g->c;
  float* rest_y = y + filled.n * g->oh * g->ow * g->k();
  parallel(g->threads, [&](int64_t thread, int64_t threads) {
    each_unit(filled, g->oh, thread, threads, [&](auto lanes, int64_t sample, Range rows) {
      forward_rows<decltype(lanes)::value>(filled, columns, weight, x, y, sample, rows);
    });
    each_slice<kWidth>(g->filters, [&](auto lanes, auto vectors, int64_t slice) {
      forward_slice<decltype(lanes)::value, decltype(vectors)::value>(rest, columns, rest_x, weight, slice, rest_y,
                                                                     thread, threads);
    });
  });
  return true;
}

bool block_conv_input_gradient(const Geometry* g, const int32_t* tap_start, const int32_t* channel,
                               const int64_t* order, const float* weight, const float* dy, float* dx) {
  const Columns columns{tap_start, channel, order};
  if (!valid(*g, columns)) return false;
  const int64_t taps = g->taps();
  std::vector<float> panels(g->columns * g->filters);
  std::vector<Job> jobs;
  std::vector<int64_t> first_job(1, 0);
  for (int64_t group = 0; group < g->groups; ++group)
    for (int64_t t = 0; t < taps; ++t) {
      const int32_t* start = tap_start + group * (taps + 1) + t;
      split(start[0], start[1], kSampleTile, [&](int64_t column, int64_t count) {
        float* panel = &panels[column * g->filters];
        for (int64_t j = 0; j < count; ++j)
          for (int64_t r = 0; r < g->filters; ++r) panel[r * count + j] = weight[(column + j) * g->filters + r];
        jobs.push_back({column, count, column * g->filters});
      });
      first_job.push_back(static_cast<int64_t>(jobs.size()));
    }
  parallel(g->threads, [&](int64_t thread, int64_t threads) {
    each_unit(*g, g->h, thread, threads, [&](auto lanes, int64_t sample, Range rows) {
      input_gradient_rows<decltype(lanes)::value>(*g, columns, jobs, first_job, panels.data(), dy, dx, sample, rows);
    });
  });
  return true;
}

bool block_conv_weight_gradient(const Geometry* g, const int32_t* tap_start, const int32_t* channel,
                                const int64_t* order, const float* x, const float* dy, float* dw) {
  const Columns columns{tap_start, channel, order};
  if (!valid(*g, columns)) return false;
  const int64_t size = g->columns * g->filters;
  std::vector<std::vector<float>> sums(std::max<int64_t>(g->threads - 1, 0));
  std::fill(dw, dw + size, 0.0f);
  parallel(g->threads, [&](int64_t thread, int64_t threads) {
    if (thread > 0) sums[thread - 1].assign(size, 0.0f);
    weight_gradient_rows(*g, columns, x, dy, share(g->n * g->oh, thread, threads),
                         thread > 0 ? sums[thread - 1].data() : dw);
  });
  parallel(g->threads, [&](int64_t thread, int64_t threads) {
    const Range mine = share(size, thread, threads);
    for (const std::vector<float>& part : sums)
      for (int64_t i = mine.begin; i < std::min<int64_t>(mine.end, part.size()); ++i) dw[i] += part[i];
  });
  return true;
}

}  // extern "C"
