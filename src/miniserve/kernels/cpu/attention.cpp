// Attention of new tokens over a paged KV cache: one query a sequence (decode), many (prefill), or both in one batch.
//
// A task is a few tokens of a sequence, all heads. It walks the keys in tiles of 32, straight in the cache: scores, softmax
// so far, weighted sum of values. In decode that takes as long as reading the cache, so a key is read whole, for all heads,
// before the next one, while the next tile's keys and this one's values are on their way. The rows of a head are the
// queries of its group, for each token of the task.
//
// Two invariants make a row's result the same bits whatever the batch, the chunk of a prompt or the number of threads:
// tiles and spans lie at fixed places of the sequence, and every sum has one order. The softmax is taken over spans of
// 512 keys and merged from first to last, so when tasks are few, threads can share one: by heads, and by spans.
//
// Does not do: head dimensions that are no multiple of 16, groups above 32; windows, sinks or other masks.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "attention_tile.h"
#include "kernels.h"
#include "simd.h"

namespace {

constexpr int ROWS = 32;  // most rows of a head in a task
constexpr int64_t SPAN = 512;

// Where a tile's keys and values lie: those of the task's first head; the others follow.
template <class C>
struct Tile {
  int count;
  const C *keys[TILE], *values[TILE];
};

// A softmax under way, for the rows of a task: [head, token, query head of the group].
struct Rows {
  Buffer<float> queries, sums;   // [rows, D]: scaled, in the order of the cache's elements (simd.h); of e^(score - most) v
  Buffer<float> most, total;     // [rows]: the largest score; sum of e^(score - most)
  Buffer<float> scores, shrink;  // [rows, TILE], [rows]: of the tile at hand
  Rows(int64_t rows, int64_t D)
      : queries(rows * D), sums(rows * D), most(rows), total(rows), scores(rows * TILE), shrink(rows) {}
};

struct Task {
  int64_t sequence, token, tokens;  // `tokens` queries from row `token` of q
  int64_t head, heads;              // key/value heads
  int64_t visible;                  // keys that the last of the tokens sees
  int64_t spans() const { return (visible + SPAN - 1) / SPAN; }
};

template <class C>
void prefetch(const C* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(C)) __builtin_prefetch(from + i);
}

// N query heads, G key/value heads, D head dimension, S slots of a block, W width of the block table, as in the reference.
template <class C>
struct Attention {
  int64_t N, G, D, S, W;
  const void* q;
  void* out;
  bool q_is_bf16;
  const C *k_cache, *v_cache;
  const int32_t *query_start, *context_lens, *block_table;

  int64_t group() const { return N / G; }
  int64_t rows_of_head(const Task& task) const { return task.tokens * group(); }
  int64_t rows_of(const Task& task) const { return task.heads * rows_of_head(task); }

  // False if lengths do not fit together or a table names a block that is not there.
  bool plan(int64_t B, int64_t blocks, int threads, std::vector<Task>& tasks) const {
    const int64_t most = std::max(int64_t(1), ROWS / group());
    int64_t pieces = 0;
    for (int64_t b = 0; b < B; b++) {
      const int64_t count = query_start[b + 1] - query_start[b], context = context_lens[b];
      if (context == 0 || count == 0) continue;
      const int64_t used = (context + S - 1) / S;
      if (count < 0 || count > context || used > W) return false;
      for (int64_t i = 0; i < used; i++)
        if (block_table[b * W + i] < 0 || block_table[b * W + i] >= blocks) return false;
      pieces += (count + most - 1) / most * ((context + SPAN - 1) / SPAN);
    }
    const int64_t heads = threads > 1 && pieces < 2 * threads ? 1 : G;
    for (int64_t b = 0; b < B; b++) {
      if (context_lens[b] == 0) continue;
      const int64_t begin = query_start[b], end = query_start[b + 1];
      for (int64_t last = end; last > begin; last -= most)  // the longest ones first
        for (int64_t head = 0; head < G; head += heads) {
          const int64_t token = std::max(begin, last - most);
          tasks.push_back({b, token, last - token, head, heads, context_lens[b] - (end - last)});
        }
    }
    return true;
  }

  // Calls step(r, place) for each row of a task with its place in q and out.
  template <class Step>
  void each_row(const Task& task, Step step) const {
    int64_t r = 0;
    for (int64_t head = task.head; head < task.head + task.heads; head++)
      for (int64_t token = task.token; token < task.token + task.tokens; token++)
        for (int64_t i = 0; i < group(); i++) step(r++, (token * N + head * group() + i) * D);
  }

  // Rows from nothing; `q` is float or bf16.
  template <class Q>
  void open(const Task& task, const Q* q, Rows& rows) const {
    const float scale = 1 / std::sqrt(float(D));
    each_row(task, [&](int64_t r, int64_t place) {
      for (int64_t d = 0; d < D; d += STEP)
        for (int i = 0; i < STEP; i++)
          rows.queries.data[r * D + d + i] = widen(q[place + d + element<C>(i)]) * scale;
      std::fill_n(rows.sums.data + r * D, D, 0.0f);
      rows.most.data[r] = -INFINITY;
      rows.total.data[r] = 0;
    });
  }

  // The keys from `from` on, as many as a tile has and the span or the sequence still has.
  void locate(const Task& task, int64_t from, int64_t end, Tile<C>& tile) const {
    tile.count = int(std::clamp(end - from, int64_t(0), int64_t(TILE)));
    int64_t block = from / S, slot = from % S;
    for (int j = 0; j < tile.count; j++) {
      const int64_t at = ((block_table[task.sequence * W + block] * S + slot) * G + task.head) * D;
      tile.keys[j] = k_cache + at;
      tile.values[j] = v_cache + at;
      if (++slot == S) slot = 0, block++;
    }
  }

  // The softmax of one span, from nothing.
  NOT_INLINED void attend(const Task& task, Rows& rows, int64_t span) const {
    if (q_is_bf16) open(task, static_cast<const bf16*>(q), rows);
    else open(task, static_cast<const float*>(q), rows);
    const int64_t begin = span * SPAN, end = std::min(task.visible, begin + SPAN);
    Tile<C> tile, next;
    locate(task, begin, end, next);
    for (int64_t from = begin; from < end; from += TILE) {
      tile = next;
      locate(task, from + TILE, end, next);
      score_tile(task, rows, tile, next);
      const int64_t visible = task.visible - (task.tokens - 1) - from;  // of this tile's keys, to the first token
      for (int64_t r = 0; r < rows_of(task); r++)
        rows.shrink.data[r] = soften(rows.scores.data + r * TILE,
                                     std::min(visible + r % rows_of_head(task) / group(), int64_t(tile.count)),
                                     rows.most.data[r], rows.total.data[r]);
      mix_tile(task, rows, tile);
    }
  }

  void score_tile(const Task& task, Rows& rows, const Tile<C>& tile, const Tile<C>& next) const {
    const int64_t count = rows_of_head(task), together = count > 6 ? TILE : 4;  // keys at a time
    for (int begin = 0; begin < tile.count; begin += together) {
      const int width = std::min(tile.count - begin, int(together));
      for (int j = begin; j < begin + width; j++) {
        prefetch(tile.values[j], task.heads * D);
        if (j < next.count) prefetch(next.keys[j], task.heads * D);
      }
      for (int64_t head = 0; head < task.heads; head++)
        for (int64_t r = 0; r < count; r += 3) {
          const auto step = count - r == 1 ? score_rows<1, C> : count - r == 2 ? score_rows<2, C> : score_rows<3, C>;
          const int64_t row = head * count + r;
          step(rows.queries.data + row * D, tile.keys + begin, width, head * D, D, rows.scores.data + row * TILE + begin);
        }
    }
  }

  void mix_tile(const Task& task, Rows& rows, const Tile<C>& tile) const {
    constexpr decltype(&mix_rows<1, C>) steps[] = {mix_rows<1, C>, mix_rows<2, C>, mix_rows<3, C>,
                                                   mix_rows<4, C>, mix_rows<5, C>, mix_rows<6, C>};
    const int64_t count = rows_of_head(task);
    for (int64_t head = 0; head < task.heads; head++)
      for (int64_t r = 0; r < count; r += 6) {
        const int64_t row = head * count + r;
        steps[std::min(count - r, int64_t(6)) - 1](rows.sums.data + row * D, rows.shrink.data + row,
                                                   rows.scores.data + row * TILE, tile.values, tile.count, head * D, D);
      }
  }

  // The softmax over the keys of both.
  NOT_INLINED void merge(const Task& task, Rows& rows, const Rows& next) const {
    for (int64_t r = 0; r < rows_of(task); r++) {
      const float most = std::max(rows.most.data[r], next.most.data[r]);
      const float old = exponential(broadcast(rows.most.data[r] - most))[0];
      const float added = exponential(broadcast(next.most.data[r] - most))[0];
      rows.most.data[r] = most;
      rows.total.data[r] = rows.total.data[r] * old + next.total.data[r] * added;
      for (int64_t d = r * D; d < (r + 1) * D; d++)
        rows.sums.data[d] = rows.sums.data[d] * old + next.sums.data[d] * added;
    }
  }

  void close(const Task& task, const Rows& rows) const {
    if (q_is_bf16) write(task, rows, static_cast<bf16*>(out));
    else write(task, rows, static_cast<float*>(out));
  }

  template <class Q>
  void write(const Task& task, const Rows& rows, Q* to) const {
    each_row(task, [&](int64_t r, int64_t place) {
      for (int64_t d = 0; d < D; d += STEP)
        for (int i = 0; i < STEP; i++)
          to[place + d + element<C>(i)] = narrow<Q>(rows.sums.data[r * D + d + i] / rows.total.data[r]);
    });
  }

  // Each task by one thread, span after span.
  void run_tasks(const std::vector<Task>& tasks, int threads) const {
    int64_t most = 0;
    for (const Task& task : tasks) most = std::max(most, rows_of(task));
#pragma omp parallel num_threads(threads) if (tasks.size() > 1)
    {
      Rows rows(most, D), next(most, D);
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < tasks.size(); i++) {
        attend(tasks[i], rows, 0);
        for (int64_t span = 1; span < tasks[i].spans(); span++) {
          attend(tasks[i], next, span);
          merge(tasks[i], rows, next);
        }
        close(tasks[i], rows);
      }
    }
  }

  // Each span of each task by any thread, then merged.
  void run_spans(const std::vector<Task>& tasks, int threads) const {
    struct Piece {
      const Task& task;
      int64_t span;
      std::unique_ptr<Rows> rows;
    };
    std::vector<Piece> pieces;
    for (const Task& task : tasks)
      for (int64_t span = 0; span < task.spans(); span++)
        pieces.push_back({task, span, std::make_unique<Rows>(rows_of(task), D)});
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (size_t i = 0; i < pieces.size(); i++) attend(pieces[i].task, *pieces[i].rows, pieces[i].span);
    for (size_t i = 0; i < pieces.size(); i += pieces[i].task.spans()) {
      const Piece& piece = pieces[i];
      for (int64_t span = 1; span < piece.task.spans(); span++) merge(piece.task, *piece.rows, *pieces[i + span].rows);
      close(piece.task, *piece.rows);
    }
  }
};

template <class C>
int attend(const Attention<C>& attention, int64_t T, int64_t B, int64_t blocks, int threads) {
  std::vector<Task> tasks;
  if (!attention.plan(B, blocks, threads, tasks)) return 1;
  int64_t spans = 0, rows = 0;
  for (const Task& task : tasks) spans += task.spans(), rows += task.tokens * task.heads;
  if (rows < T * attention.G)  // rows of nobody, and of sequences without a token
    memset(attention.out, 0, T * attention.N * attention.D * (attention.q_is_bf16 ? sizeof(bf16) : sizeof(float)));
  const bool few = int64_t(tasks.size()) < 4 * threads && spans > int64_t(tasks.size());
  if (few) attention.run_spans(tasks, threads);
  else attention.run_tasks(tasks, threads);
  return 0;
}

}  // namespace

int ms_paged_attention(int types, const void* q, const void* k_cache, const void* v_cache, const int32_t* query_start,
                       const int32_t* context_lens, const int32_t* block_table, void* out, int64_t T, int64_t B,
                       int64_t N, int64_t G, int64_t D, int64_t S, int64_t W, int64_t blocks, int threads) {
  const auto run = [&](auto element) {
    using C = decltype(element);
    const Attention<C> attention{N, G, D, S, W, q, out, bool(types & 1), static_cast<const C*>(k_cache),
                                 static_cast<const C*>(v_cache), query_start, context_lens, block_table};
    return attend(attention, T, B, blocks, threads);
  };
  return types & 2 ? run(bf16{}) : run(float{});
}
