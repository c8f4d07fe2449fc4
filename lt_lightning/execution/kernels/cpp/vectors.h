// Vectors of the width that the flags choose, by the vector extensions of GCC and Clang, and what is done with them.
//
// Values are float or bfloat16. What is multiplied at once is a word of 32 bits: a float, or two bfloat16 whose
// products are both added to a float (AVX512-BF16).

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#ifdef __AVX512BF16__
#include <immintrin.h>
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
constexpr int kSums = kRegisters == 32 ? 24 : 12;      // registers that hold sums; the rest hold operands
constexpr int kMaxVectors = kRegisters == 32 ? 4 : 2;  // of filters, side by side
constexpr int kMaxTile = 14;                           // pixels or columns of a tile: each needs an address register
constexpr int tile(int vectors) { return std::min(kSums / vectors, kMaxTile); }

using Bf16 = uint16_t;

template <class T>
struct Values;
template <>
struct Values<float> {
  using Word = float;
  static constexpr int kPerWord = 1;
};
template <>
struct Values<Bf16> {
  using Word = uint32_t;
  static constexpr int kPerWord = 2;
};
template <class T>
using Word = typename Values<T>::Word;
template <class T>
constexpr int kPerWord = Values<T>::kPerWord;

// How many words hold so many values; the last is filled up with a zero.
template <class T>
constexpr int64_t words(int64_t values) {
  return (values + kPerWord<T> - 1) / kPerWord<T>;
}

template <class T, int L>
struct Lanes {
  typedef T Vec __attribute__((vector_size(L * sizeof(T))));
  typedef T InMemory __attribute__((vector_size(L * sizeof(T)), aligned(sizeof(T)), may_alias));
};
template <class T, int L>
using Vec = typename Lanes<T, L>::Vec;

template <int L, class T>
inline Vec<T, L> load(const T* from) {
  return *reinterpret_cast<const typename Lanes<T, L>::InMemory*>(from);
}
template <int L, class T>
inline void store(T* to, Vec<T, L> value) {
  *reinterpret_cast<typename Lanes<T, L>::InMemory*>(to) = value;
}

// ---------------------------------------------------------------------------------------------------------- products

// sum + a * b in every lane: of bfloat16, both products.
template <int L>
inline Vec<float, L> dot(Vec<float, L> sum, float a, Vec<float, L> b) {
  return sum + a * b;
}

// What is stored of a sum.
template <class To, class From, int L>
inline Vec<To, L> rounded(Vec<From, L> sum) {
  if constexpr (std::is_same_v<To, From>) {
    return sum;
  } else {
#ifdef __AVX512BF16__
    static_assert(L == 16);
    return (Vec<To, L>)_mm512_cvtneps_pbh((__m512)sum);
#endif
  }
}

#ifdef __AVX512BF16__
template <int L>
inline Vec<float, L> dot(Vec<float, L> sum, uint32_t a, Vec<uint32_t, L> b) {
  const int pair = static_cast<int>(a);
  if constexpr (L == 16) {
    return (Vec<float, L>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
  } else if constexpr (L == 8) {
    return (Vec<float, L>)_mm256_dpbf16_ps((__m256)sum, (__m256bh)_mm256_set1_epi32(pair), (__m256bh)b);
  } else if constexpr (L == 4) {
    return (Vec<float, L>)_mm_dpbf16_ps((__m128)sum, (__m128bh)_mm_set1_epi32(pair), (__m128bh)b);
  } else {
    const auto low = [](Vec<uint32_t, L> words) { return (Vec<float, L>)(words << 16); };
    const auto high = [](Vec<uint32_t, L> words) { return (Vec<float, L>)(words & 0xffff0000u); };
    const Vec<uint32_t, L> both = Vec<uint32_t, L>{} + a;
    return sum + low(both) * low(b) + high(both) * high(b);
  }
}
#endif

// --------------------------------------------------------------------------------------------------------------- words

inline uint32_t pair(Bf16 low, Bf16 high) { return low | static_cast<uint32_t>(high) << 16; }

template <int L>
inline Vec<uint32_t, L> pairs(Vec<Bf16, L> low, Vec<Bf16, L> high) {
#ifdef __AVX512BF16__
  if constexpr (L == 16) {  // one permutation, where the compiler would widen both
    Vec<int16_t, 32> zip;
    for (int i = 0; i < 32; ++i) zip[i] = i / 2 + i % 2 * 16;
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512((__m256i)low), (__m256i)high, 1);
    return (Vec<uint32_t, L>)_mm512_permutexvar_epi16((__m512i)zip, both);
  }
#endif
  return __builtin_convertvector(low, Vec<uint32_t, L>) | __builtin_convertvector(high, Vec<uint32_t, L>) << 16;
}

// to[i] = (low[i], high[i]), or (low[i], 0) without `high`.
inline void pair_rows(const Bf16* low, const Bf16* high, int64_t count, uint32_t* to) {
  if (high != nullptr)
    for (int64_t i = 0; i < count; ++i) to[i] = pair(low[i], high[i]);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = low[i];
}

// The i-th word of `count` values.
inline float word_at(const float* values, int64_t i, int64_t) { return values[i]; }
inline uint32_t word_at(const Bf16* values, int64_t i, int64_t count) {
  return pair(values[2 * i], 2 * i + 1 < count ? values[2 * i + 1] : Bf16{});
}

// The word of the values at the lanes' places; of bfloat16, those of two channels.
template <int L>
inline Vec<float, L> word(const float* values, const int32_t* channel) {
  return load<L>(values + static_cast<int64_t>(channel[0]) * L);
}
template <int L>
inline Vec<uint32_t, L> word(const Bf16* values, const int32_t* channel) {
  return pairs<L>(load<L>(values + static_cast<int64_t>(channel[0]) * L),
                  load<L>(values + static_cast<int64_t>(channel[1]) * L));
}

// ------------------------------------------------------------------------------------------------------- transposition

template <int D, class T, int L>
inline void exchange(Vec<T, L>& a, Vec<T, L>& b) {
#ifdef __clang__
  Vec<T, L> low, high;
  for (int i = 0; i < L; ++i) {
    low[i] = i & D ? b[i - D] : a[i];
    high[i] = i & D ? b[i] : a[i + D];
  }
#else
  Vec<std::conditional_t<sizeof(T) == 4, int32_t, int16_t>, L> to_low, to_high;
  for (int i = 0; i < L; ++i) {
    to_low[i] = i & D ? i - D + L : i;
    to_high[i] = i & D ? i + L : i + D;
  }
  const Vec<T, L> low = __builtin_shuffle(a, b, to_low), high = __builtin_shuffle(a, b, to_high);
#endif
  a = low;
  b = high;
}

template <int D, class T, int L>
inline void transpose(Vec<T, L> (&square)[L]) {
  if constexpr (D > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
      if ((i & D) == 0) exchange<D, T, L>(square[i], square[i + D]);
    transpose<D / 2, T, L>(square);
  }
}

// A square of words is moved at once, so that every line of the cache is read or written whole: the lines of different
// samples often fall on the same place in the cache. `here` values of each sample are there (a constant for all squares
// but the last, which is read from a copy).

template <int L, class T, class Place>
[[gnu::always_inline]] inline void gather_square(const T* from, int64_t stride, int64_t samples, int64_t here, T* to,
                                                 Place place) {
  Vec<Word<T>, L> square[L];
#pragma GCC unroll 16
  for (int s = 0; s < L; ++s) {
    square[s] = Vec<Word<T>, L>{};
    if (s < samples) square[s] = (Vec<Word<T>, L>)load<L * kPerWord<T>>(from + s * stride);
  }
  transpose<L / 2, Word<T>, L>(square);
#pragma GCC unroll 16
  for (int s = 0; s < L; ++s) {
    const int i = s * kPerWord<T>;
    if constexpr (kPerWord<T> == 1) {
      if (i < here) store<L>(to + place(i) * L, square[s]);
    } else {
      if (i < here) store<L>(to + place(i) * L, __builtin_convertvector(square[s] & 0xffffu, Vec<T, L>));
      if (i + 1 < here) store<L>(to + place(i + 1) * L, __builtin_convertvector(square[s] >> 16, Vec<T, L>));
    }
  }
}

template <int L, class From, class T>
[[gnu::always_inline]] inline void scatter_square(const From* from, int64_t stride, int64_t samples, T* to) {
  Vec<Word<T>, L> square[L];
#pragma GCC unroll 16
  for (int s = 0; s < L; ++s) {
    const From* at = from + s * kPerWord<T> * L;
    if constexpr (kPerWord<T> == 1)
      square[s] = load<L>(at);
    else
      square[s] = pairs<L>(rounded<T, From, L>(load<L>(at)), rounded<T, From, L>(load<L>(at + L)));
  }
  transpose<L / 2, Word<T>, L>(square);
#pragma GCC unroll 16
  for (int s = 0; s < L; ++s)
    if (s < samples) store<L * kPerWord<T>>(to + s * stride, (Vec<T, L * kPerWord<T>>)square[s]);
}

// from[sample][i] -> to[place(i)][sample]; `samples` of the L lanes are there, the others become zero.
template <int L, class T, class Place>
void gather_samples(const T* from, int64_t stride, int64_t samples, int64_t count, T* to, Place place) {
  constexpr int step = L * kPerWord<T>;
  int64_t i = 0;
  const auto after = [&](int64_t j) { return place(i + j); };
  for (; i + step <= count; i += step) gather_square<L>(from + i, stride, samples, step, to, after);
  if (i == count) return;
  T rest[L * step] = {};
  for (int64_t s = 0; s < samples; ++s) std::copy_n(from + s * stride + i, count - i, rest + s * step);
  gather_square<L>(rest, step, samples, count - i, to, after);
}

// from[i][sample] -> to[sample][i]
template <int L, class From, class T>
void scatter_samples(const From* from, int64_t stride, int64_t samples, int64_t count, T* to) {
  constexpr int step = L * kPerWord<T>;
  int64_t i = 0;
  for (; i + step <= count; i += step) scatter_square<L>(from + i * L, stride, samples, to + i);
  if (i == count) return;
  From padded[step * L] = {};
  T rest[L * step];
  std::copy_n(from + i * L, (count - i) * L, padded);
  scatter_square<L>(padded, step, samples, rest);
  for (int64_t s = 0; s < samples; ++s) std::copy_n(rest + s * step, count - i, to + s * stride + i);
}

}  // namespace
