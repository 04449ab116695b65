// A mixture of experts: every token through its chosen experts, and what these answer, weighted and added up.
//
// Assignments (a token's choice) are sorted by expert. Then each expert that has any is a group of `multiply`: its gate
// and up, and after SiLU its down. Threads share out panels of all experts' rows, so it does not matter how unevenly
// tokens chose; an expert that nobody chose is not looked at.
//
// A token's result does not depend on its batch: products do not, and its answers are added in the order of its choices.
//
// Does not do: activations other than float32; sizes that the weights' forms do not take.
#include <algorithm>
#include <vector>

#include "grouped.h"
#include "kernels.h"
#include "linear_4bit.h"
#include "linear_weights.h"

namespace {

constexpr int64_t MOST_ASSIGNMENTS = 4096;  // worked on at a time: what they need in between must not fill the memory
constexpr int64_t WORTH_THREADS = 1 << 14;  // elements, as in rowwise.cpp

// Some tokens' assignments in the order of their experts.
struct Sorted {
  std::vector<int64_t> begins;  // [E + 1]: where each expert's begin
  std::vector<int64_t> tokens;  // [A]
  std::vector<int64_t> places;  // [T, K]: where among them an assignment is; negative for padding

  Sorted(const int64_t* expert_ids, int64_t T, int64_t K, int64_t E) : begins(E + 1), places(T * K, -1) {
    const auto is_expert = [&](int64_t id) { return id >= 0 && id < E; };
    for (int64_t a = 0; a < T * K; a++)
      if (is_expert(expert_ids[a])) begins[expert_ids[a] + 1]++;
    for (int64_t e = 0; e < E; e++) begins[e + 1] += begins[e];
    tokens.resize(begins[E]);
    std::vector<int64_t> next(begins.begin(), begins.end() - 1);
    for (int64_t a = 0; a < T * K; a++)
      if (is_expert(expert_ids[a])) tokens[places[a] = next[expert_ids[a]]++] = a / K;
  }

  // The busy experts, each with so many rows of the stack.
  std::vector<Group> groups(int64_t rows) const {
    std::vector<Group> busy;
    for (int64_t e = 0; e + 1 < int64_t(begins.size()); e++)
      if (begins[e] < begins[e + 1]) busy.push_back({begins[e], begins[e + 1], e * rows});
    return busy;
  }
};

void product(const Stack& w, const float* x, const int64_t* source, float* y, int64_t M, int64_t N, int64_t K,
             const std::vector<Group>& groups, int threads) {
  const Output out{y, nullptr, N, false};
  switch (w.kind) {
    case 0: return multiply(FloatWeight<float>(w.data, M, K), x, source, out, M, groups, threads);
    case 1: return multiply(FloatWeight<bf16>(w.data, M, K), x, source, out, M, groups, threads);
    case 2: return multiply(ByteWeight(w.data, w.scales, M, K), x, source, out, M, groups, threads);
    case 3: return multiply(Weight4(w.data, w.scales, M, K), x, source, out, M, groups, threads);
  }
}

// out [H] = a token's answers, those of its K choices, weighted.
void add_up(const float* answers, const float* weights, const int64_t* places, float* out, int64_t K, int64_t H) {
  for (int64_t h = 0; h < H; h += LANES) {
    Floats total = {};
    for (int64_t k = 0; k < K; k++)
      if (places[k] >= 0) total = multiply_add(load<Floats>(answers + places[k] * H + h), broadcast(weights[k]), total);
    store(out + h, total);
  }
}

void some_tokens(const Experts& experts, const float* x, const float* weights, const int64_t* expert_ids, float* out,
                 int64_t* counts, int64_t T, int threads) {
  const auto [gate_up, down, E, K, H, I] = experts;
  const Sorted sorted(expert_ids, T, K, E);
  const int64_t A = sorted.tokens.size();
  Buffer<float> wide(A * 2 * I), inner(A * I), answers(A * H);
  if (counts)
    for (int64_t e = 0; e < E; e++) counts[e] += sorted.begins[e + 1] - sorted.begins[e];
  if (A > 0) {
    product(gate_up, x, sorted.tokens.data(), wide.data, A, 2 * I, H, sorted.groups(2 * I), threads);
    ms_silu_mul(0, wide.data, inner.data, A, I, threads);
    product(down, inner.data, nullptr, answers.data, A, H, I, sorted.groups(H), threads);
  }
#pragma omp parallel for num_threads(threads) if (A * H >= WORTH_THREADS)
  for (int64_t t = 0; t < T; t++)
    add_up(answers.data, weights + t * K, sorted.places.data() + t * K, out + t * H, K, H);
}

// weights and expert_ids [K] = a token's choice by its scores [E]. `scratch` [E, rounded up to whole vectors].
void route_row(const float* scores, float* weights, int64_t* expert_ids, float* scratch, int64_t E, int64_t K,
               bool normalize) {
  const auto is_chosen = [&](int64_t e, int64_t k) { return std::find(expert_ids, expert_ids + k, e) != expert_ids + k; };
  for (int64_t k = 0; k < K; k++) {
    int64_t best = -1;
    for (int64_t e = 0; e < E; e++)
      if ((best < 0 || scores[e] > scores[best]) && !is_chosen(e, k)) best = e;
    expert_ids[k] = best;
  }
  const float most = scores[expert_ids[0]];
  const int64_t padded = (E + LANES - 1) / LANES * LANES;
  for (int64_t e = 0; e < padded; e++) scratch[e] = e < E ? scores[e] - most : -100.0f;  // e^-100 is 0
  Floats all = {};
  for (int64_t e = 0; e < padded; e += LANES) {
    const Floats x = load<Floats>(scratch + e), powers = x == x ? exponential(x) : x;
    store(scratch + e, powers);
    all += powers;
  }
  float total = sum(all), chosen = 0;
  for (int64_t k = 0; k < K; k++) chosen += weights[k] = scratch[expert_ids[k]] / total;
  for (int64_t k = 0; k < K && normalize; k++) weights[k] /= chosen;
}

}  // namespace

void ms_route(const float* scores, float* weights, int64_t* expert_ids, int64_t T, int64_t E, int64_t K, int normalize,
              int threads) {
#pragma omp parallel num_threads(threads) if (T * E * K >= WORTH_THREADS)
  {
    Buffer<float> scratch(E + LANES);
#pragma omp for
    for (int64_t t = 0; t < T; t++)
      route_row(scores + t * E, weights + t * K, expert_ids + t * K, scratch.data, E, K, normalize);
  }
}

void ms_moe(const Experts* experts, const float* x, const float* weights, const int64_t* expert_ids, float* out,
            int64_t* counts, int64_t T, int threads) {
  const int64_t K = experts->K, H = experts->H, most = std::max(int64_t(1), MOST_ASSIGNMENTS / K);
  for (int64_t t = 0; t < T; t += most)
    some_tokens(*experts, x + t * H, weights + t * K, expert_ids + t * K, out + t * H, counts, std::min(most, T - t),
                threads);
}
