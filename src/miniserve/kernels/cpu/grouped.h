// y = x W^T for groups of tokens, each with its own rows of W: a linear layer has one group, a mixture one an expert.
//
// A group's rows are cut into panels; threads take panels of groups, in order, from one end of W to the other. Within
// one, a tile is R rows of W by M tokens, its R M sums in registers. At one token the time is that of reading W once;
// with more, a tile of W's rows and of tokens shares what it reads.
//
// Does not do: blocking for thousands of tokens.
#pragma once
#include <algorithm>
#include <vector>

#include "linear.h"

namespace {

// Tokens [from, to) are for the rows of W from `row` on.
struct Group {
  int64_t from, to, row;
};

// All rows of a panel for M tokens: R rows at a time, then one at a time. While one tile is computed, memory is asked for
// the next one: after the panel's last, the one at row `then`, unless that is negative.
template <int M, int R, class Weight>
void rows_of(const Weight& weight, const typename Weight::Panel& panel, int64_t m, int64_t begin, int64_t end,
             int64_t then, const Output& out) {
  const auto after = [&](int64_t n) { return then >= 0 && n < end ? n : then; };
  int64_t n = begin;
  for (; n + R <= end; n += R) weight.template tile<M, R>(panel, m, n, after(n + R), out);
  for (; n < end; n++) weight.template tile<M, 1>(panel, m, n, after(n + 1), out);
}

// The same for tokens [from, to), the first of which ask memory for what is at `then`; later ones find it in the cache.
template <class Weight>
void panel_of(const Weight& weight, typename Weight::Panel& scratch, int64_t begin, int64_t end, int64_t from, int64_t to,
              int64_t then, const Output& out) {
  weight.open(scratch, begin, end);
  constexpr int MANY = Weight::MANY;
  for (int64_t m = from; m < to;) {
    const int64_t fresh = m == from ? then : -1;
    if (m + MANY <= to) rows_of<MANY, 2>(weight, scratch, m, begin, end, fresh, out), m += MANY;
    else if (m + 2 <= to) rows_of<2, 4>(weight, scratch, m, begin, end, fresh, out), m += 2;
    else rows_of<1, 2>(weight, scratch, m, begin, end, fresh, out), m += 1;
  }
}

// One more of what threads share out; each takes it once.
int64_t take_one(int64_t& taken) {
  int64_t mine;
#pragma omp atomic capture
  mine = taken++;
  return mine;
}

// Groups of no more tokens than are worked on at a time.
template <class Weight>
std::vector<Group> pieces_of(const Weight& weight, const std::vector<Group>& groups) {
  const int64_t most = std::max(int64_t(Weight::MANY), WORKING_SET / (weight.K * Weight::INPUT_BYTES) / 20 * 20);
  std::vector<Group> pieces;
  for (const Group& group : groups)
    for (int64_t from = group.from; from < group.to; from += most)
      pieces.push_back({from, std::min(group.to, from + most), group.row});
  return pieces;
}

// y [M, N], of which a group has its tokens' rows. Token m is row source[m] of x, or row m where there is no source.
template <class Weight>
void multiply(const Weight& weight, const void* x, const int64_t* source, const Output& out, int64_t M,
              const std::vector<Group>& groups, int threads) {
  const int64_t N = out.columns, all_rows = N * int64_t(groups.size());
  const int64_t multiple = Weight::ROWS;
  const int64_t rows = std::clamp(all_rows / (8 * threads) / multiple * multiple, multiple, MOST_ROWS);
  const int64_t panels = (N + rows - 1) / rows;
  const std::vector<Group> parts = pieces_of(weight, groups);
  const int64_t pieces = panels * int64_t(parts.size());  // a panel of rows with a part's tokens
  const auto take_in = [&](int64_t m) { take(weight, x, out.is_bf16, source ? source[m] : m, m); };
  int64_t taken = 0;
  if (M == 1) take_in(0);
#pragma omp parallel num_threads(threads)
  {
    typename Weight::Panel scratch;
    if (M > 1) {
#pragma omp for
      for (int64_t m = 0; m < M; m++) take_in(m);
    }
    // Taken one ahead, so that a thread knows where it goes on: otherwise it would ask memory for what another reads.
    for (int64_t mine = take_one(taken), next; mine < pieces; mine = next) {
      next = take_one(taken);
      const Group &part = parts[mine / panels], &after = parts[std::min(next, pieces - 1) / panels];
      const int64_t first = mine % panels * rows, last = std::min(N, first + rows);
      const int64_t then = next < pieces ? after.row + next % panels * rows : -1;
      panel_of(weight, scratch, part.row + first, part.row + last, part.from, part.to, then, out.of(part.row));
    }
  }
}

}  // namespace
