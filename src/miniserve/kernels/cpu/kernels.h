// The library's functions: what Python calls through ctypes, and `dense.cpp` calls in a row. Pointers are to contiguous
// tensors of the shapes that are given; letters are the reference's. `types` says which are bf16 instead of float32:
// 1 the activations, 2 the other tensor (a norm's weight, the cache). Nothing is checked here but what is said.
#pragma once
#include <cstdint>

#define EXPORTED extern "C" __attribute__((visibility("default")))

// out [R, H] = x normalised, times weight [H]. With a residual [R, H]: that is x added to it, in place, and normalised.
EXPORTED void ms_norm(int types, void* residual, const void* x, const void* weight, void* out, int64_t R, int64_t H,
                      float eps, int threads);

// y [M, N] = x [M, K] W^T + bias, which may be null. kind of W: 0 float32, 1 bf16, 2 int8, 3 4-bit; data and
// scales as linear_weight.py lays them out.
EXPORTED void ms_linear(int kind, const void* x, int is_bf16, const void* w, const void* scales, const float* bias,
                        void* y, int64_t M, int64_t N, int64_t K, int threads);

// qkv [T, (N + 2G) D]: queries turned to q [T, N, D], keys turned and values to their slots, of which the caches have
// cache_slots; a negative slot is padding. Norms [D] of heads before that, or null. 1 if a slot is not in the cache.
EXPORTED int ms_rope_store(int types, const void* qkv, const float* cos, const float* sin, const float* q_norm,
                           const float* k_norm, float eps, void* q, void* k_cache, void* v_cache, const int64_t* slots,
                           int64_t T, int64_t N, int64_t G, int64_t D, int64_t cache_slots, int threads);

// out [T, N, D] = attention of q over caches [blocks, S, G, D]. 1 if lengths or the block table [B, W] make no sense.
EXPORTED int ms_paged_attention(int types, const void* q, const void* k_cache, const void* v_cache,
                                const int32_t* query_start, const int32_t* context_lens, const int32_t* block_table,
                                void* out, int64_t T, int64_t B, int64_t N, int64_t G, int64_t D, int64_t S, int64_t W,
                                int64_t blocks, int threads);

// out [R, I] = SiLU(gate) * up for gate_up [R, 2 I].
EXPORTED void ms_silu_mul(int is_bf16, const void* gate_up, void* out, int64_t R, int64_t I, int threads);

// out [R]: the place of each row's first largest logit.
EXPORTED void ms_argmax(const float* logits, int64_t* out, int64_t R, int64_t V, int threads);

// What a token goes through in a mixture: E matrices of one form, one below the other, written by moe.py.
struct Stack {
  int64_t kind;  // as in ms_linear
  const void *data, *scales;
};
struct Experts {
  Stack gate_up, down;  // [E, 2 I, H] and [E, H, I]
  int64_t E, K, H, I;   // K: experts of a token
};

// Of each token's scores [T, E] the K largest, the first of equals first: expert_ids [T, K], and weights [T, K], their
// softmax over all experts, or (normalize) over the chosen ones.
EXPORTED void ms_route(const float* scores, float* weights, int64_t* expert_ids, int64_t T, int64_t E, int64_t K,
                       int normalize, int threads);

// out [T, H] = each token's experts' answers to x [T, H], times weights [T, K]. An id outside [0, E) is padding. To
// counts [E], or null, is added how many tokens each expert got.
EXPORTED void ms_moe(const Experts* experts, const float* x, const float* weights, const int64_t* expert_ids, float* out,
                     int64_t* counts, int64_t T, int threads);
