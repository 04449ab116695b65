// y = x W^T with weights of 4 bits: see linear_4bit.h.
#include "linear_4bit.h"

#include <algorithm>

void multiply_4bit(const void* w, const void* scales, const void* x, const Output& out, int64_t M, int64_t K,
                   int threads) {
  const Weight4 weight(w, scales, M, K);
  // One token: memory is read in long runs. Many: small pieces, so that nobody waits long for the last.
  const int64_t chunk = std::max(int64_t(1), out.columns / Weight4::ROWS / (M == 1 ? threads : 16 * threads));
  const int64_t tokens = std::max(int64_t(4), WORKING_SET / K / 4 * 4);
  if (M == 1) take(weight, x, out.is_bf16, 0, 0);  // to meet once more would take longer
#pragma omp parallel num_threads(threads)
  {
    Buffer<float> widened(weight.groups * 2 * Weight4::ROWS);
    if (M > 1) {
#pragma omp for
      for (int64_t m = 0; m < M; m++) take(weight, x, out.is_bf16, m, m);
    }
    for (int64_t from = 0; from < M; from += tokens) {
      const int64_t to = std::min(M, from + tokens);
#pragma omp for schedule(dynamic, chunk) nowait
      for (int64_t n = 0; n < out.columns; n += Weight4::ROWS)
        eight_rows(weight, widened.data, n, from, to, true, out);
    }
  }
}
