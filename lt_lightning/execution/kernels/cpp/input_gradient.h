// The gradient of the input.

#pragma once

#include <array>
#include <memory>

#include "geometry.h"

namespace {

// --------------------------------------------------------------------------- lanes are samples: gradient of the input

// Some columns of one group at one tap, their weights turned to (word of filters, column).
struct Job {
  int64_t column, count, panel;
};

template <class T, int L>
struct Strip {  // pixels of a row: from, to, and how far apart they lie
  const Word<T>* from;
  float* to;
  int64_t pixels, from_step, to_step, words;
};

template <class T, int L, int C>
void add_columns(const Strip<T, L>& strip, const int32_t* channel, const Word<T>* panel) {
  const Word<T>* from = strip.from;
  float* to = strip.to;
  for (int64_t pixel = 0; pixel < strip.pixels; ++pixel, from += strip.from_step, to += strip.to_step) {
    Vec<float, L> sum[C];
#pragma GCC unroll 32
    for (int j = 0; j < C; ++j) sum[j] = Vec<float, L>{};
    const Word<T>* w = panel;
    for (int64_t r = 0; r < strip.words; ++r, w += C) {
      const Vec<Word<T>, L> dy = load<L>(from + r * L);
#pragma GCC unroll 32
      for (int j = 0; j < C; ++j) sum[j] = dot<L>(sum[j], w[j], dy);
    }
#pragma GCC unroll 32
    for (int j = 0; j < C; ++j) {
      float* into = to + static_cast<int64_t>(channel[j]) * L;
      store<L>(into, load<L>(into) + sum[j]);
    }
  }
}

template <class T, int L, int... C>
constexpr auto add_columns_table(std::integer_sequence<int, C...>) {
  return std::array<void (*)(const Strip<T, L>&, const int32_t*, const Word<T>*), sizeof...(C)>{
      add_columns<T, L, C + 1>...};
}

// The columns of a layer as jobs.
template <class T>
struct Jobs {
  std::vector<Job> all;
  std::vector<int64_t> first{0};  // [G * T + 1]: the jobs of a group at a tap
  std::unique_ptr<Word<T>[]> panels;

  Jobs(const Geometry& g, const Columns& columns, const T* weight)
      : panels(new Word<T>[g.columns * words<T>(g.filters)]) {
    const int64_t taps = g.taps(), rows = words<T>(g.filters);
    for (int64_t i = 0; i < g.groups * (taps + 1); ++i) {
      if (i % (taps + 1) == taps) continue;
      split(columns.tap_start[i], columns.tap_start[i + 1], kSums,
            [&](int64_t column, int64_t count) { all.push_back({column, count, column * rows}); });
      first.push_back(static_cast<int64_t>(all.size()));
    }
    parallel(g.threads, [&](int64_t thread, int64_t threads) {
      const Range mine = share(static_cast<int64_t>(all.size()), thread, threads);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        const Job job = all[i];
        const T* of_columns = weight + job.column * g.filters;
        Word<T>* to = &panels[job.panel];
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t j = 0; j < job.count; ++j) *to++ = word_at(of_columns + j * g.filters, r, g.filters);
      }
    });
  }
};

// Where a filter's gradient lies among those of a pixel: in the order of the groups, each in whole words.
template <class T>
std::vector<int32_t> places(const Geometry& g, const Columns& columns) {
  std::vector<int32_t> place(g.k());
  const int64_t padded = words<T>(g.filters) * kPerWord<T>;
  for (int64_t i = 0; i < g.k(); ++i)
    place[columns.order[i]] = static_cast<int32_t>(i / g.filters * padded + i % g.filters);
  return place;
}

template <class T, int L>
void input_gradient_rows(const Geometry& g, const Columns& columns, const Jobs<T>& jobs,
                         const std::vector<int32_t>& place, const T* dy, T* dx, int64_t sample, Range rows) {
  static constexpr auto table = add_columns_table<T, L>(std::make_integer_sequence<int, kSums>());
  const int64_t k = g.k(), taps = g.taps(), samples = std::min<int64_t>(L, g.n - sample);
  const int64_t group_words = words<T>(g.filters), pixel = g.groups * group_words * L;
  const int64_t slots = (g.kh - 1) * g.dh / g.sh + 1;  // rows of the output that one row of the input meets
  std::vector<Word<T>> ring(slots * g.ow * pixel);
  std::vector<float> sums(g.w * g.c * L);
  std::vector<T> single(kPerWord<T> > 1 ? pixel * kPerWord<T> : 0);  // filters of a pixel before they are joined
  const std::vector<uint8_t> row_met = met(g.kh, g.dh, g.ph, g.sh, g.h, g.oh);
  const std::vector<uint8_t> column_met = met(g.kw, g.dw, g.pw, g.sw, g.w, g.ow);
  int64_t turned = -1;  // rows of the output up to here have been turned
  for (int64_t ih = rows.begin; ih < rows.end; ++ih) {
    if (!row_met[ih]) {
      for (int64_t s = 0; s < samples; ++s)
        std::fill_n(dx + ((sample + s) * g.h + ih) * g.w * g.c, g.w * g.c, T{});
      continue;
    }
    std::fill(sums.begin(), sums.end(), 0.0f);
    const int64_t last = std::min((ih + g.ph) / g.sh, g.oh - 1);
    for (turned = std::max(turned, last - slots); turned < last;) {
      ++turned;
      for (int64_t ow = 0; ow < g.ow; ++ow) {
        Word<T>* const to = &ring[(turned % slots * g.ow + ow) * pixel];
        const auto gather = [&](T* into) {
          gather_samples<L>(dy + ((sample * g.oh + turned) * g.ow + ow) * k, g.oh * g.ow * k, samples, k, into,
                            [&](int64_t i) { return place[i]; });
        };
        if constexpr (std::is_same_v<T, Word<T>>) {
          gather(to);
        } else {
          gather(single.data());
          for (int64_t i = 0; i < pixel; i += L)
            store<L>(to + i, pairs<L>(load<L>(&single[2 * i]), load<L>(&single[2 * i + L])));
        }
      }
    }
    for (int64_t group = 0; group < g.groups; ++group)
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t position = ih + g.ph - t / g.kw * g.dh, oh = position / g.sh;
        if (position < 0 || position % g.sh || oh >= g.oh) continue;
        const int64_t offset = t % g.kw * g.dw - g.pw;
        const Range valid = inside(offset, g.sw, g.w, g.ow);
        const Strip<T, L> strip{&ring[(oh % slots * g.ow + valid.begin) * pixel + group * group_words * L],
                                sums.data() + (valid.begin * g.sw + offset) * g.c * L,
                                valid.end - valid.begin,
                                pixel,
                                g.sw * g.c * L,
                                group_words};
        if (strip.pixels == 0) continue;
        for (int64_t i = jobs.first[group * taps + t]; i < jobs.first[group * taps + t + 1]; ++i) {
          const Job& job = jobs.all[i];
          table[job.count - 1](strip, columns.channel + job.column, &jobs.panels[job.panel]);
        }
      }
    for (int64_t iw = 0; iw < g.w; ++iw) {
      T* const to = dx + ((sample * g.h + ih) * g.w + iw) * g.c;
      if (column_met[iw])
        scatter_samples<L>(&sums[iw * g.c * L], g.h * g.w * g.c, samples, g.c, to);
      else
        for (int64_t s = 0; s < samples; ++s) std::fill_n(to + s * g.h * g.w * g.c, g.c, T{});
    }
  }
}

template <class T>
void input_gradient(const Geometry& g, const Columns& columns, const T* weight, const T* dy, T* dx) {
  const Jobs<T> jobs(g, columns, weight);
  const std::vector<int32_t> place = places<T>(g, columns);
  parallel(g.threads, [&](int64_t thread, int64_t threads) {
    each_unit<std::is_same_v<T, float>>(g, g.h, thread, threads, [&](auto lanes, int64_t sample, Range rows) {
      input_gradient_rows<T, decltype(lanes)::value>(g, columns, jobs, place, dy, dx, sample, rows);
    });
  });
}

}  // namespace
