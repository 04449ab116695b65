// A decoder's layers in one call, for few tokens: then the calls from Python would take as long as the work.
//
// It does what the operators do one by one, in the order of the decoder's layers, and nothing of its own: each result has
// the same bits. The residual stream is float32 whatever the weights are.
//
// Does not do: embedding, the last norm, logits.
#include <algorithm>

#include "kernels.h"
#include "simd.h"

namespace {

// The structures are written by dense.py, field by field.
struct Linear {
  int64_t kind, rows, columns;
  const void *data, *scales;
  const float* bias;
  void operator()(const float* x, float* y, int64_t tokens, int threads) const {
    ms_linear(int(kind), x, 0, data, scales, bias, y, tokens, rows, columns, threads);
  }
};

// A layer's feed-forward part is `gate_up` and `down`, or, where there are experts, `router` and these.
struct Layer {
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
  Linear qkv, out, gate_up, down, router;
  Experts experts;
  int64_t normalize;
  int64_t* counts;  // as in ms_moe
};

struct Model {
  const Layer* layers;
  int64_t num_layers, H, N, G, D;
  float eps;
};

struct Step {
  float* x;  // [T, H], changed
  const float *cos, *sin;
  const int64_t* slots;
  const int32_t *query_start, *context_lens, *block_table;
  void *const *k_caches, *const *v_caches;  // of each layer
  int64_t T, B, W, S, blocks;
  int64_t cache_is_bf16;
};

void mixture(const Layer& layer, const float* x, float* out, int64_t tokens, int threads) {
  const auto& experts = layer.experts;
  Buffer<float> scores(tokens * experts.E), weights(tokens * experts.K);
  Buffer<int64_t> expert_ids(tokens * experts.K);
  layer.router(x, scores.data, tokens, threads);
  ms_route(scores.data, weights.data, expert_ids.data, tokens, experts.E, experts.K, int(layer.normalize), threads);
  ms_moe(&experts, x, weights.data, expert_ids.data, out, layer.counts, tokens, threads);
}

}  // namespace

// 1 if a slot, a length or the block table makes no sense.
EXPORTED int ms_dense_layers(const Model* model, const Step* step, int threads) {
  const auto [layers, num_layers, H, N, G, D, eps] = *model;
  const int64_t T = step->T;
  int64_t I = 0;  // of dense layers, which may be all, some, or none
  for (int64_t l = 0; l < num_layers; l++) I = std::max(I, layers[l].down.columns);
  const int types = step->cache_is_bf16 ? 2 : 0;
  Buffer<float> normed(T * H), wide(T * std::max((N + 2 * G) * D, 2 * I)), q(T * N * D), seen(T * N * D), inner(T * I),
      answer(T * H);
  for (int64_t l = 0; l < num_layers; l++) {
    const Layer& layer = layers[l];
    // A layer's last addition to the residual stream is the next one's first step.
    if (l == 0) ms_norm(0, nullptr, step->x, layer.attention_norm, normed.data, T, H, eps, threads);
    else ms_norm(0, step->x, answer.data, layer.attention_norm, normed.data, T, H, eps, threads);
    layer.qkv(normed.data, wide.data, T, threads);
    if (ms_rope_store(types, wide.data, step->cos, step->sin, layer.q_norm, layer.k_norm, eps, q.data,
                      step->k_caches[l], step->v_caches[l], step->slots, T, N, G, D, step->blocks * step->S, threads))
      return 1;
    if (ms_paged_attention(types, q.data, step->k_caches[l], step->v_caches[l], step->query_start, step->context_lens,
                           step->block_table, seen.data, T, step->B, N, G, D, step->S, step->W, step->blocks, threads))
      return 1;
    layer.out(seen.data, answer.data, T, threads);
    ms_norm(0, step->x, answer.data, layer.mlp_norm, normed.data, T, H, eps, threads);
    if (layer.experts.E > 0) {
      mixture(layer, normed.data, answer.data, T, threads);
      continue;
    }
    layer.gate_up(normed.data, wide.data, T, threads);
    ms_silu_mul(0, wide.data, inner.data, T, I, threads);
    layer.down(inner.data, answer.data, T, threads);
  }
  for (int64_t i = 0; i < T * H; i++) step->x[i] += answer.data[i];
  return 0;
}
