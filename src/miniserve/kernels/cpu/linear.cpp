// y = x W^T with weights as they lie in memory: float32, bf16 or int8; 4-bit ones are in linear_4bit.cpp.
//
// Does not do: row lengths that are no multiple of 64.
#include "grouped.h"
#include "kernels.h"
#include "linear_weights.h"

void ms_linear(int kind, const void* x, int is_bf16, const void* w, const void* scales, const float* bias, void* y,
               int64_t M, int64_t N, int64_t K, int threads) {
  const Output out{y, bias, N, bool(is_bf16)};
  const std::vector<Group> all{{0, M, 0}};
  switch (kind) {
    case 0: return multiply(FloatWeight<float>(w, M, K), x, nullptr, out, M, all, threads);
    case 1: return multiply(FloatWeight<bf16>(w, M, K), x, nullptr, out, M, all, threads);
    case 2: return multiply(ByteWeight(w, scales, M, K), x, nullptr, out, M, all, threads);
    case 3: return multiply_4bit(w, scales, x, out, M, K, threads);
  }
}
