// What attention does with one tile of keys, for a few rows of queries at a time: so many that their sums stay in
// registers. A row's numbers have the same bits however many rows and keys are taken together.
//
// Does not do: paging, masks between tiles, heads. Keys and values come as pointers to their rows.
#pragma once
#include <algorithm>
#include <cmath>

#include "simd.h"

namespace {

constexpr int TILE = 32;  // keys

// scores[r, j] = queries[r] · keys[j] for R rows and J keys.
template <int R, int J, class C>
NOT_INLINED void score(const float* queries, const C* const* keys, int64_t head, int64_t D, float* scores) {
  Floats products[J][R] = {};
  for (int64_t d = 0; d < D; d += STEP) {
    Floats row[R];
    UNROLL for (int r = 0; r < R; r++) row[r] = held(load<Floats>(queries + r * D + d));
    UNROLL for (int j = 0; j < J; j++) {
      const Floats key = first(keys[j] + head + d);
      UNROLL for (int r = 0; r < R; r++) products[j][r] = multiply_add(row[r], key, products[j][r]);
    }
    UNROLL for (int r = 0; r < R; r++) row[r] = held(load<Floats>(queries + r * D + d + LANES));
    UNROLL for (int j = 0; j < J; j++) {
      const Floats key = second(keys[j] + head + d);
      UNROLL for (int r = 0; r < R; r++) products[j][r] = multiply_add(row[r], key, products[j][r]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) {
    if (J == 4) store(scores + r * TILE, sums(products[0][r], products[1 % J][r], products[2 % J][r], products[3 % J][r]));
    else scores[r * TILE] = sum(products[0][r]);
  }
}

// sums[r, ..] = sums[r, ..] · shrink[r] + sum over j of weights[r, j] · values[j, ..], for R rows and 16 elements.
template <int R, class C>
NOT_INLINED void mix(float* sums, int64_t D, const float* shrink, const float* weights, const C* const* values,
                     int64_t at, int count) {
  Floats mixed[R][2];
  UNROLL for (int r = 0; r < R; r++) {
    mixed[r][0] = load<Floats>(sums + r * D) * shrink[r];
    mixed[r][1] = load<Floats>(sums + r * D + LANES) * shrink[r];
  }
  for (int j = 0; j < count; j++) {
    const Floats a = held(first(values[j] + at)), b = held(second(values[j] + at));
    UNROLL for (int r = 0; r < R; r++) {
      const Floats weight = held(broadcast(weights[r * TILE + j]));
      mixed[r][0] = multiply_add(weight, a, mixed[r][0]);
      mixed[r][1] = multiply_add(weight, b, mixed[r][1]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) {
    store(sums + r * D, mixed[r][0]);
    store(sums + r * D + LANES, mixed[r][1]);
  }
}

template <int R, class C>
void score_rows(const float* queries, const C* const* keys, int count, int64_t head, int64_t D, float* scores) {
  int j = 0;
  for (; j + 4 <= count; j += 4) score<R, 4>(queries, keys + j, head, D, scores + j);
  for (; j < count; j++) score<R, 1>(queries, keys + j, head, D, scores + j);
}

template <int R, class C>
void mix_rows(float* sums, const float* shrink, const float* weights, const C* const* values, int count, int64_t head,
              int64_t D) {
  for (int64_t d = 0; d < D; d += STEP) mix<R>(sums + d, D, shrink, weights, values, head + d, count);
}

// Scores become e^(score - most), 0 where a row does not see; returns by what earlier sums shrink.
float soften(float* scores, int64_t visible, float& most, float& total) {
  for (int64_t j = std::max(visible, int64_t(0)); j < TILE; j++) scores[j] = -INFINITY;
  Floats top = load<Floats>(scores);
  for (int j = LANES; j < TILE; j += LANES) top = larger(top, load<Floats>(scores + j));
  const float newest = std::max(most, maximum(top));
  if (newest == -INFINITY) {  // nothing seen yet
    std::fill(scores, scores + TILE, 0.0f);
    return 1;
  }
  Floats added = {};
  for (int j = 0; j < TILE; j += LANES) {
    const Floats weight = exponential(load<Floats>(scores + j) - newest);
    store(scores + j, weight);
    added += weight;
  }
  const float shrink = exponential(broadcast(most - newest))[0];
  total = total * shrink + sum(added);
  most = newest;
  return shrink;
}

}  // namespace
