// The weights of a linear layer as `multiply` wants them: float32, bf16 or int8 (4-bit ones are in linear_4bit.h). Each
// keeps x in the form that its products need, and computes a tile: R of its rows times M tokens.
//
// Every sum runs over its row's elements in one order, whatever the tile, so a token's result does not depend on its
// batch. x is widened and put into the order of W's elements (see simd.h) or, for int8 weights, rounded to 16 bits with
// one scale a token.
#pragma once
#include <algorithm>
#include <memory>

#include "linear.h"

namespace {

// float32 or bf16 weights [N, K].
template <class T>
struct FloatWeight {
  static constexpr int MANY = 5, ROWS = 4;  // tokens of a tile, and rows that a panel has a multiple of
  static constexpr int64_t INPUT_BYTES = 4;
  struct Panel {};
  const T* rows;
  int64_t K;
  Buffer<float> x;

  FloatWeight(const void* w, int64_t M, int64_t K) : rows(static_cast<const T*>(w)), K(K), x(M * K) {}

  template <class X>
  void take(const X* in, int64_t m) const {
    for (int64_t k = 0; k < K; k += STEP)
      for (int i = 0; i < STEP; i++) x.data[m * K + k + i] = widen(in[k + element<T>(i)]);
  }
  void open(Panel&, int64_t, int64_t) const {}

  template <int M, int R>
  NOT_INLINED void tile(const Panel&, int64_t m, int64_t n, int64_t then, const Output& out) const {
    const float* a = x.data + m * K;
    const T* w = rows + n * K;
    Floats sums[R][M] = {}, v[R];
    for (int64_t k = 0; k < K; k += STEP) {
      if (then >= 0) prefetch<R * STEP * sizeof(T)>(rows + then * K + R * k);
      UNROLL for (int r = 0; r < R; r++) v[r] = first(w + r * K + k);
      UNROLL for (int i = 0; i < M; i++) {
        const Floats token = held(load<Floats>(a + i * K + k));
        UNROLL for (int r = 0; r < R; r++) sums[r][i] = multiply_add(v[r], token, sums[r][i]);
      }
      UNROLL for (int r = 0; r < R; r++) v[r] = second(w + r * K + k);
      UNROLL for (int i = 0; i < M; i++) {
        const Floats token = held(load<Floats>(a + i * K + k + LANES));
        UNROLL for (int r = 0; r < R; r++) sums[r][i] = multiply_add(v[r], token, sums[r][i]);
      }
    }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) out.put(m + i, n + r, sum(sums[r][i]));
  }
};

// x as 16-bit integers: x = integer * scale, with one scale a token. Infinity and NaN go into the scale.
struct Rounded {
  int64_t K;
  Buffer<int16_t> values;
  Buffer<float> scales;

  Rounded(int64_t M, int64_t K) : K(K), values(M * K), scales(M) {}

  template <class X>
  void take(const X* in, int64_t m) const {
    float most = 0, total = 0;
    for (int64_t k = 0; k < K; k++) {
      const float x = widen(in[k]);
      most = std::max(most, x < 0 ? -x : x);
      total += x;
    }
    const float inverse = most > 0 ? 32767 / most : 0;
    for (int64_t k = 0; k < K; k++) {
      const float x = widen(in[k]) * inverse;
      values.data[m * K + k] = int16_t(int32_t(x + (x < 0 ? -0.5f : 0.5f)));
    }
    scales.data[m] = most / 32767 + 0 * total;
  }
};

// int8 weights with a scale for each 32 of a row: w = q * scale. A block of 32 elements is read as 16-bit words: word i
// holds elements i and i + 16.
struct ByteWeight : Rounded {
  static constexpr int MANY = 4, ROWS = 4;
  static constexpr int64_t INPUT_BYTES = 2;
  const int8_t* rows;
  const uint16_t* halves;  // [N, K / 32]
  int64_t groups;

  struct Panel {  // its rows' scales, widened once for all tokens
    int64_t from = 0;
    std::unique_ptr<float[]> scales;
  };

  ByteWeight(const void* w, const void* halves, int64_t M, int64_t K)
      : Rounded(M, K), rows(static_cast<const int8_t*>(w)), halves(static_cast<const uint16_t*>(halves)),
        groups(K / GROUP) {}

  void open(Panel& panel, int64_t begin, int64_t end) const {
    if (!panel.scales) panel.scales.reset(new float[MOST_ROWS * groups]);
    panel.from = begin;
    for (int64_t i = 0; i < (end - begin) * groups; i++) panel.scales[i] = widen_half(halves[begin * groups + i]);
  }

  template <int M, int R>
  NOT_INLINED void tile(const Panel& panel, int64_t m, int64_t n, int64_t then, const Output& out) const {
    const int16_t* a = values.data + m * K;
    const int8_t* w = rows + n * K;
    const float* scale = panel.scales.get() + (n - panel.from) * groups;
    Floats products[R][M] = {};
    for (int64_t g = 0; g < groups; g += 2) {
      if (then >= 0) prefetch<R * 2 * GROUP>(rows + then * K + R * g * GROUP);
      UNROLL for (int r = 0; r < R; r++) {
        const Shorts v = load<Shorts>(w + r * K + g * GROUP), u = load<Shorts>(w + r * K + (g + 1) * GROUP);
        const Shorts q[4] = {v << 8 >> 8, v >> 8, u << 8 >> 8, u >> 8};
        const Floats low = broadcast(scale[r * groups + g]), high = broadcast(scale[r * groups + g + 1]);
        UNROLL for (int i = 0; i < M; i++) {
          const int16_t* x = a + i * K + g * GROUP;
          const Ints sums[2] = {multiply_pairs(q[0], load<Shorts>(x)) + multiply_pairs(q[1], load<Shorts>(x + 16)),
                                multiply_pairs(q[2], load<Shorts>(x + 32)) + multiply_pairs(q[3], load<Shorts>(x + 48))};
          products[r][i] = multiply_add(__builtin_convertvector(sums[0], Floats), low, products[r][i]);
          products[r][i] = multiply_add(__builtin_convertvector(sums[1], Floats), high, products[r][i]);
        }
      }
    }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < M; i++) out.put(m + i, n + r, sum(products[r][i]) * scales.data[m + i]);
  }
};

}  // namespace
