// Block convolution on the CPU: a convolution whose filters come in groups, each with its own columns.
//
// A column is one input channel at one kernel position (tap). The filters of a group share its columns, so a group is
// a dense matrix (columns x R filters). Tensors are NHWC.
//
//   tap_start  [G][T + 1]  the columns of group g at tap t are tap_start[g][t] .. tap_start[g][t + 1]
//   channel    [columns]   input channel of a column
//   weight     [columns][R]
//   order      [G * R]     output channel of a group's filter
//
// Values are float32, or bfloat16 with sums in float32 where the processor multiplies it (AVX512-BF16).
//
// Nothing is unfolded in memory, and taps outside the image cost nothing where a whole tile misses it. Written with the
// vector extensions of GCC and Clang: the flags choose the instruction set.

#include "forward.h"
#include "input_gradient.h"
#include "weight_gradient.h"

// Each returns whether the indices are valid; if not, nothing has been done.
#define BLOCK_CONV(T, suffix)                                                                                         \
  bool block_conv_forward##suffix(const Geometry* g, const int32_t* tap_start, const int32_t* channel,                \
                                  const int64_t* order, const T* weight, const T* x, T* y) {                          \
    const Columns columns{tap_start, channel, order};                                                                 \
    if (!valid(*g, columns)) return false;                                                                            \
    forward(*g, columns, weight, x, y);                                                                               \
    return true;                                                                                                      \
  }                                                                                                                   \
  bool block_conv_input_gradient##suffix(const Geometry* g, const int32_t* tap_start, const int32_t* channel,         \
                                         const int64_t* order, const T* weight, const T* dy, T* dx) {                 \
    const Columns columns{tap_start, channel, order};                                                                 \
    if (!valid(*g, columns)) return false;                                                                            \
    input_gradient(*g, columns, weight, dy, dx);                                                                      \
    return true;                                                                                                      \
  }                                                                                                                   \
  bool block_conv_weight_gradient##suffix(const Geometry* g, const int32_t* tap_start, const int32_t* channel,        \
                                          const int64_t* order, const T* x, const T* dy, float* dw) {                 \
    const Columns columns{tap_start, channel, order};                                                                 \
    if (!valid(*g, columns)) return false;                                                                            \
    weight_gradient(*g, columns, x, dy, dw);                                                                          \
    return true;                                                                                                      \
  }

extern "C" {
BLOCK_CONV(float, )
#ifdef __AVX512BF16__
BLOCK_CONV(Bf16, _bfloat16)
#endif
}
