// Weights of 4 bits, and products with them: w = q * scale + minimum, with a scale and a minimum for each 32 of a row.
//
// Eight rows of W are interleaved, so that a vector's lanes are rows: a lane adds up a group's 32 products in integers of
// 16 bits, and only their sum is widened and scaled. That needs x in bytes, rounded with a scale for each group. No sum
// overflows: 8 times 2 * 15 * 127 is 30,480.
//
// A transformer's activations have a few channels that are far larger than the rest, and a byte that spans one of these
// leaves little for its 31 neighbours. So a group with a value beyond OUTLIER times the token's root mean square, about
// every sixth, gets a second byte for what the first one lost.
//
// A token's result does not depend on its batch: a lane adds its groups up in one order, whatever the tile is, and where
// a tile's other tokens have second bytes, zeros are added.
//
// Layout: w [N / 8, K / 64, 8, 32] bytes. Of a block of 64 elements of 8 rows, byte 4 r + j of vector s holds row r's
// element 4 s + j in its lower and 32 + 4 s + j in its upper half. scales [N / 8, K / 32, 2, 8] halves: the scales of 8
// rows, then their minimums.
//
// Does not do: N that is no multiple of 8, K that is none of 64.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>

#include "linear.h"

namespace {

constexpr int STEPS = 8, VECTOR = 32;
constexpr float OUTLIER = 4, FINER = 254;  // a second byte counts in steps of scale / FINER
constexpr int64_t AHEAD = 4096;  // bytes: at one token, memory is asked for what is needed some 20 blocks later
constexpr int64_t BLOCK = 2 * GROUP, BLOCK_BYTES = STEPS * VECTOR;

struct Weight4 {
  static constexpr int ROWS = 8, MANY = 4;
  static constexpr int64_t INPUT_BYTES = 1;
  int64_t K, groups;
  const uint8_t* w;
  const uint16_t* halves;
  Buffer<int8_t> values, rests;  // x / scale, and what is lost of it: [M, K]
  Buffer<uint8_t> has_rest;      // [M, K / 32]
  Buffer<float> factors;         // [M, K / 32, 2]: the scale of a group, and the sum of its rounded x

  Weight4(const void* w, const void* halves, int64_t M, int64_t K)
      : K(K), groups(K / GROUP), w(static_cast<const uint8_t*>(w)), halves(static_cast<const uint16_t*>(halves)),
        values(M * K), rests(M * K), has_rest(M * groups), factors(M * groups * 2) {}

  // Infinity and NaN go into the group's factors.
  template <class X>
  void take(const X* in, int64_t m) const {
    Floats squares = {};
    for (int64_t k = 0; k < K; k += LANES) {
      float x[LANES];
      for (int i = 0; i < LANES; i++) x[i] = widen(in[k + i]);
      squares += load<Floats>(x) * load<Floats>(x);
    }
    const float outlier = OUTLIER * std::sqrt(sum(squares) / float(K));
    for (int64_t g = 0; g < groups; g++) {
      float x[GROUP];
      for (int k = 0; k < GROUP; k++) x[k] = widen(in[g * GROUP + k]);
      Floats largest = {}, all = {};
      for (int k = 0; k < GROUP; k += LANES) {
        const Floats part = load<Floats>(x + k);
        largest = larger(larger(part, -part), largest);
        all += part;
      }
      const float most = maximum(largest), inverse = most > 0 ? 127 / most : 0;
      int8_t *first = values.data + m * K + g * GROUP, *second = rests.data + m * K + g * GROUP;
      const bool twice = most > outlier;
      int32_t total = 0, rest = 0;
      for (int k = 0; k < GROUP; k++) total += first[k] = int8_t(nearest(x[k] * inverse));
      for (int k = 0; k < GROUP; k++) rest += second[k] = twice ? int8_t(nearest((x[k] * inverse - float(first[k])) * FINER)) : 0;
      has_rest.data[m * groups + g] = twice;
      factors.data[(m * groups + g) * 2] = most / 127 + 0 * sum(all);
      factors.data[(m * groups + g) * 2 + 1] = most / 127 * (float(total) + float(rest) / FINER);
    }
  }
  static int32_t nearest(float x) { return int32_t(x + (x < 0 ? -0.5f : 0.5f)); }

  struct Panel {  // scales and minimums of eight rows, widened
    std::unique_ptr<float[]> scales;
  };

  // Scales and minimums of 8 rows, [K / 32, 2, 8].
  void open(float* scales, int64_t n) const {
    const uint16_t* from = halves + n * groups * 2;
    for (int64_t i = 0; i < groups * 2; i++) {
      if (i % 4 == 0) __builtin_prefetch(from + i * ROWS + AHEAD / 4);
      store(scales + i * ROWS, widen_halves(from + i * ROWS));
    }
  }

  template <int M>
  NOT_INLINED void tile(const float* scales, int64_t m, int64_t n, bool fresh, const Output& out) const {
    const uint8_t* block = w + n * K / 2;
    const int64_t at = m * K;
    const float* factor = factors.data + m * groups * 2;
    const uint8_t* flags = has_rest.data + m * groups;
    Floats results[M] = {};
    for (int64_t g = 0; g < groups; g += 2, block += BLOCK_BYTES) {
      if (fresh) prefetch<BLOCK_BYTES>(block + AHEAD);
      Shorts low[M], high[M];
      add_up<M>(block, values.data + at + g * GROUP, low, high);
      UNROLL for (int i = 0; i < M; i++) {
        const float* f = factor + (i * groups + g) * 2;
        scale(results[i], low[i], f[0], scales + g * 2 * ROWS);
        results[i] = multiply_add(broadcast(f[1]), load<Floats>(scales + (g * 2 + 1) * ROWS), results[i]);
        scale(results[i], high[i], f[2], scales + (g + 1) * 2 * ROWS);
        results[i] = multiply_add(broadcast(f[3]), load<Floats>(scales + (g * 2 + 3) * ROWS), results[i]);
      }
      bool twice[2] = {};
      UNROLL for (int i = 0; i < M; i++) twice[0] |= flags[i * groups + g], twice[1] |= flags[i * groups + g + 1];
      if (twice[0]) add_rests<M, 0>(block, m, g, scales, results);
      if (twice[1]) add_rests<M, 1>(block, m, g + 1, scales, results);
    }
    UNROLL for (int i = 0; i < M; i++) out.put_eight(m + i, n, results[i]);
  }

  // The products of a block of 8 rows with M tokens' bytes, added up for each of its two groups; lanes in pairs.
  template <int M>
  void add_up(const uint8_t* block, const int8_t* x, Shorts* low, Shorts* high) const {
    UNROLL for (int i = 0; i < M; i++) low[i] = high[i] = Shorts{};
    for (int s = 0; s < STEPS; s++) {
      const Bytes q = load<Bytes>(block + s * VECTOR);
      const Bytes lower = held(q & 15), upper = held((Bytes)((Halves)q >> 4) & 15);
      UNROLL for (int i = 0; i < M; i++) {
        low[i] += multiply_bytes(lower, repeat_four(x + i * K + 4 * s));
        high[i] += multiply_bytes(upper, repeat_four(x + i * K + 4 * s + GROUP));
      }
    }
  }

  // What the second bytes of group g add, which lies in the lower (HALF 0) or the upper halves of a block's bytes.
  template <int M, int HALF>
  void add_rests(const uint8_t* block, int64_t m, int64_t g, const float* scales, Floats* results) const {
    const int8_t* x = rests.data + m * K + g * GROUP;
    Shorts sums[M] = {};
    for (int s = 0; s < STEPS; s++) {
      const Halves q = load<Halves>(block + s * VECTOR);
      const Bytes part = held((Bytes)(q >> (4 * HALF)) & 15);
      UNROLL for (int i = 0; i < M; i++) sums[i] += multiply_bytes(part, repeat_four(x + i * K + 4 * s));
    }
    UNROLL for (int i = 0; i < M; i++)
      scale(results[i], sums[i], factors.data[((m + i) * groups + g) * 2] / FINER, scales + g * 2 * ROWS);
  }

  // A group's part of eight rows' results for a token.
  static void scale(Floats& result, Shorts sums, float factor, const float* scales) {
    const Floats products = __builtin_convertvector(multiply_pairs(sums, Shorts{} + 1), Floats) * factor;
    result = multiply_add(products, load<Floats>(scales), result);
  }
};

// Eight rows of W from n on, for tokens [from, to); `fresh`: they come from memory. `scales` is scratch, as `open` wants it.
inline void eight_rows(const Weight4& weight, float* scales, int64_t n, int64_t from, int64_t to, bool fresh,
                       const Output& out) {
  weight.open(scales, n);
  int64_t m = from;
  for (; m + 4 <= to; m += 4) weight.tile<4>(scales, m, n, fresh && m == from, out);
  for (; m + 2 <= to; m += 2) weight.tile<2>(scales, m, n, fresh && m == from, out);
  for (; m < to; m++) weight.tile<1>(scales, m, n, fresh && m == from, out);
}

// As grouped.h's, for whole eights of rows.
inline void panel_of(const Weight4& weight, Weight4::Panel& scratch, int64_t begin, int64_t end, int64_t from, int64_t to,
                     int64_t, const Output& out) {
  if (!scratch.scales) scratch.scales.reset(new float[weight.groups * 2 * Weight4::ROWS]);
  for (int64_t n = begin; n < end; n += Weight4::ROWS) eight_rows(weight, scratch.scales.get(), n, from, to, true, out);
}

}  // namespace
