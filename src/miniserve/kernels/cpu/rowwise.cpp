// The decoder's small operators, which treat each row alone: norms, RoPE with the store into the KV cache, the gate of the
// feed-forward layer, and the choice of the largest logit. Each reads its input once and writes its result once; what it
// computes on the way is float32, rounded where the reference rounds.
//
// Does not do: rows whose length is no multiple of 16 (RoPE and argmax take any).
#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels.h"
#include "simd.h"

namespace {

// Fewer elements than this are done before a second thread has woken up.
constexpr int64_t WORTH_THREADS = 1 << 14;

// residual (if there is one) += x; out = weight * residual / sqrt(mean(residual^2) + eps). `row` is scratch.
template <class T, class W>
void norm_row(T* residual, const T* x, const W* weight, T* out, float* row, int64_t H, float eps) {
  Floats squares = {};
  for (int64_t h = 0; h < H; h += STEP) {
    Floats a = first(x + h), b = second(x + h);
    if (residual) {
      store_both(residual + h, first(residual + h) + a, second(residual + h) + b);
      a = first(residual + h), b = second(residual + h);  // as it was rounded
    }
    squares += a * a;
    squares += b * b;
    store(row + h, a);
    store(row + h + LANES, b);
  }
  const float scale = 1 / std::sqrt(sum(squares) / H + eps);
  for (int64_t h = 0; h < H; h += STEP)
    for (int i = 0; i < STEP; i++) {
      const int64_t at = h + element<T>(i);
      out[at] = narrow<T>(widen(weight[at]) * widen(narrow<T>(row[h + i] * scale)));
    }
}

template <class T, class W>
void norm(T* residual, const T* x, const W* weight, T* out, int64_t R, int64_t H, float eps, int threads) {
#pragma omp parallel num_threads(threads) if (R * H >= WORTH_THREADS)
  {
    const std::unique_ptr<float[]> row(new float[H]);
#pragma omp for
    for (int64_t r = 0; r < R; r++)
      norm_row(residual ? residual + r * H : nullptr, x + r * H, weight, out + r * H, row.get(), H, eps);
  }
}

// to = head, its pairs (i, i + D/2) turned. `cos` and `sin` are the token's, [D/2].
template <class T, class To>
void rotate(const T* head, const float* cos, const float* sin, To* to, int64_t D) {
  for (int64_t i = 0; i < D / 2; i++) {
    const float a = widen(head[i]), b = widen(head[i + D / 2]);
    to[i] = narrow<To>(widen(narrow<T>(a * cos[i] - b * sin[i])));
    to[i + D / 2] = narrow<To>(widen(narrow<T>(b * cos[i] + a * sin[i])));
  }
}

// One token: queries to q, keys and values to their slot if it has one. Norms of heads before RoPE where there are weights.
template <class T, class C>
void rope_store_row(const T* qkv, const float* cos, const float* sin, const float* q_norm, const float* k_norm, float eps,
                    T* q, C* keys, C* values, int64_t N, int64_t G, int64_t D, T* normed, float* scratch) {
  const auto norm_head = [&](const T* head, const float* weight) {
    if (!weight) return head;
    norm_row<T, float>(nullptr, head, weight, normed, scratch, D, eps);
    return static_cast<const T*>(normed);
  };
  for (int64_t n = 0; n < N; n++) rotate(norm_head(qkv + n * D, q_norm), cos, sin, q + n * D, D);
  if (!keys) return;
  qkv += N * D;
  for (int64_t g = 0; g < G; g++) rotate(norm_head(qkv + g * D, k_norm), cos, sin, keys + g * D, D);
  qkv += G * D;
  for (int64_t i = 0; i < G * D; i++) values[i] = narrow<C>(widen(qkv[i]));
}

template <class T, class C>
bool rope_store(const T* qkv, const float* cos, const float* sin, const float* q_norm, const float* k_norm, float eps,
                T* q, C* k_cache, C* v_cache, const int64_t* slots, int64_t tokens, int64_t N, int64_t G, int64_t D,
                int64_t cache_slots, int threads) {
  if (std::any_of(slots, slots + tokens, [&](int64_t slot) { return slot >= cache_slots; })) return false;
#pragma omp parallel num_threads(threads) if (tokens * N * D >= WORTH_THREADS)
  {
    const std::unique_ptr<T[]> normed(new T[D]);
    const std::unique_ptr<float[]> scratch(new float[D]);
#pragma omp for
    for (int64_t t = 0; t < tokens; t++) {
      const int64_t slot = slots[t] * G * D;
      rope_store_row(qkv + t * (N + 2 * G) * D, cos + t * D / 2, sin + t * D / 2, q_norm, k_norm, eps, q + t * N * D,
                     slot < 0 ? nullptr : k_cache + slot, slot < 0 ? nullptr : v_cache + slot, N, G, D, normed.get(),
                     scratch.get());
    }
  }
  return true;
}

template <class T>
void silu_mul(const T* gate_up, T* out, int64_t R, int64_t I, int threads) {
  const auto silu = [](Floats x) { return rounded<T>(x / (1.0f + exponential(-x))); };
#pragma omp parallel for num_threads(threads) if (R * I >= WORTH_THREADS)
  for (int64_t r = 0; r < R; r++) {
    const T *gate = gate_up + r * 2 * I, *up = gate + I;
    for (int64_t i = 0; i < I; i += STEP)
      store_both(out + r * I + i, silu(first(gate + i)) * first(up + i), silu(second(gate + i)) * second(up + i));
  }
}

// The first of the largest; NaN counts as largest of all, as in torch.
int64_t argmax_row(const float* row, int64_t V) {
  constexpr int64_t BLOCK = 1024;
  int64_t found = 0;
  float most = row[0];
  for (int64_t begin = 0; begin < V && most == most; begin += BLOCK) {
    const int64_t end = std::min(V, begin + BLOCK);
    // Two loops that vectorise: is there anything new in the block, and only then, where.
    int32_t exceeds = 0;
    for (int64_t i = begin; i < end; i++) exceeds |= !(row[i] <= most);
    if (!exceeds) continue;
    for (int64_t i = begin; i < end && most == most; i++)
      if (!(row[i] <= most)) most = row[i], found = i;
  }
  return found;
}

}  // namespace

void ms_norm(int types, void* residual, const void* x, const void* weight, void* out, int64_t R, int64_t H,
                        float eps, int threads) {
  const auto run = [&](auto type, auto weight_type) {
    using T = decltype(type);
    using W = decltype(weight_type);
    norm(static_cast<T*>(residual), static_cast<const T*>(x), static_cast<const W*>(weight), static_cast<T*>(out), R, H,
         eps, threads);
  };
  switch (types) {
    case 0: return run(float{}, float{});
    case 1: return run(bf16{}, float{});
    case 2: return run(float{}, bf16{});
    case 3: return run(bf16{}, bf16{});
  }
}

int ms_rope_store(int types, const void* qkv, const float* cos, const float* sin, const float* q_norm,
                           const float* k_norm, float eps, void* q, void* k_cache, void* v_cache, const int64_t* slots,
                           int64_t T, int64_t N, int64_t G, int64_t D, int64_t cache_slots, int threads) {
  const auto run = [&](auto type, auto cache_type) {
    using X = decltype(type);
    using C = decltype(cache_type);
    return rope_store(static_cast<const X*>(qkv), cos, sin, q_norm, k_norm, eps, static_cast<X*>(q),
                      static_cast<C*>(k_cache), static_cast<C*>(v_cache), slots, T, N, G, D, cache_slots, threads);
  };
  const bool stored = types == 0   ? run(float{}, float{})
                      : types == 1 ? run(bf16{}, float{})
                      : types == 2 ? run(float{}, bf16{})
                                   : run(bf16{}, bf16{});
  return stored ? 0 : 1;
}

void ms_silu_mul(int is_bf16, const void* gate_up, void* out, int64_t R, int64_t I, int threads) {
  if (is_bf16) silu_mul(static_cast<const bf16*>(gate_up), static_cast<bf16*>(out), R, I, threads);
  else silu_mul(static_cast<const float*>(gate_up), static_cast<float*>(out), R, I, threads);
}

void ms_argmax(const float* logits, int64_t* out, int64_t R, int64_t V, int threads) {
#pragma omp parallel for num_threads(threads) if (R > 1)
  for (int64_t r = 0; r < R; r++) out[r] = argmax_row(logits + r * V, V);
}
