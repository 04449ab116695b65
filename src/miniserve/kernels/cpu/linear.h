// What the linear layers' sources share.
#pragma once
#include <cstdint>

#include "simd.h"

namespace {

constexpr int64_t GROUP = 32;             // elements of an int8 or 4-bit row that share a scale
constexpr int64_t MOST_ROWS = 64;         // of a panel, which a thread takes at a time
constexpr int64_t WORKING_SET = 1 << 18;  // bytes of x that are worked on at a time: half a second-level cache

// Asks for BYTES from there. Rows that come from memory are read tile by tile, too short a way for the processor to guess.
template <int BYTES>
inline void prefetch(const void* from) {
  UNROLL for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// Row `row` of x [.., K] as token m, in the form that the weight's products need.
template <class Weight>
void take(const Weight& weight, const void* x, bool is_bf16, int64_t row, int64_t m) {
  if (is_bf16) weight.take(static_cast<const bf16*>(x) + row * weight.K, m);
  else weight.take(static_cast<const float*>(x) + row * weight.K, m);
}

}  // namespace

// Where the results go: y [M, N] in float32 or bf16, a bias [N] or none added. W's row `first` is y's first column.
struct Output {
  void* y;
  const float* bias;
  int64_t columns;
  bool is_bf16;
  int64_t first = 0;
  Output of(int64_t row) const { return {y, bias, columns, is_bf16, row}; }
  void put(int64_t m, int64_t n, float value) const {
    n -= first;
    if (bias) value = held(value) + bias[n];
    if (is_bf16) static_cast<bf16*>(y)[m * columns + n] = narrow<bf16>(value);
    else static_cast<float*>(y)[m * columns + n] = value;
  }
  void put_eight(int64_t m, int64_t n, Floats values) const {
    n -= first;
    if (bias) values = values + load<Floats>(bias + n);
    if (!is_bf16) return store(static_cast<float*>(y) + m * columns + n, values);
    for (int i = 0; i < LANES; i++) static_cast<bf16*>(y)[m * columns + n + i] = narrow<bf16>(values[i]);
  }
};

// Weights of 4 bits: linear_4bit.cpp.
void multiply_4bit(const void* w, const void* scales, const void* x, const Output& out, int64_t M, int64_t K,
                   int threads);
