// The tile kernel over an instruction set `Isa`. Included once by each isa_*.cpp, which is
// compiled for that set, so everything here has internal linkage: a function that the linker
// merged across those files could reach a machine that lacks its instructions. For the same
// reason no standard library header is allowed here.
//
//   shrink   h[t, j] = sum_k x[t, k] A[j, k]            K in vectors, one order for every token
//   expand   y[t, n] += sum_j h[t, j] B[j, n]           j ascending, fp32, one rounding into y
//
// T is the type of x and y, W that of A and B: T itself, or 16 bits where T is float, which halves
// the bytes that decoding is bound by and changes no sum.
//
// A token's sums never depend on which tokens share its tile, nor on how rows of A and columns of
// B are divided among threads: a mixed batch gives bit for bit what the same request gives alone.
#include <string.h>

#include "grouped.h"

namespace {

struct Bf16 { uint16_t bits; };
struct Fp16 { uint16_t bits; };

constexpr int kTokens = 4;   // tokens that share each loaded weight
constexpr int kRanks = 3;    // rows of A at a time: 4 x 3 sums, 4 x, 1 A fill 16 registers
constexpr int kLongRanks = 8;  // with one token: more rows are in flight, and rank 8 is one pass
constexpr int kPackFrom = 8; // tokens from which a column block of B is worth packing
constexpr int kPackRank = 64;
constexpr int kMaxTile = 64;
constexpr int kStreamColumns = 1024;  // 4 KiB of sums
constexpr int kStreamRows = 8;        // rank 8 needs no sums: one pass, straight into y
constexpr int kFewRows = 4;

template <class Lanes = Isa, class T>
inline typename Lanes::Vec load_part(const T* p, int64_t n) {
  T whole[Lanes::kWidth];
  memset(whole, 0, sizeof whole);
  memcpy(whole, p, n * sizeof(T));
  return Lanes::load(whole);
}

template <class T>
inline void add_part(T* p, Isa::Vec v, int64_t n) {
  T whole[Isa::kWidth];
  Isa::store(whole, Isa::add(load_part(p, n), v));
  memcpy(p, whole, n * sizeof(T));
}

// Lanes: how many x and weights are multiplied at a time, widened to floats or, where the set has
// products of that type, as they are.
template <class T, class W, int MT, int RT>
inline void shrink_block(const T* const* x, const W* a, int64_t K, float* h, int64_t ldh) {
  using Lanes = typename Isa::template Lanes<T, W>;
  Isa::Vec sum[MT][RT];
  for (int i = 0; i < MT; i++)
    for (int j = 0; j < RT; j++) sum[i][j] = Isa::zero();
  int64_t k = 0;
  for (; k + Lanes::kWidth <= K; k += Lanes::kWidth) {
    typename Lanes::Vec xv[MT];
    for (int i = 0; i < MT; i++) xv[i] = Lanes::load(x[i] + k);
    for (int j = 0; j < RT; j++) {
      const auto av = Lanes::load(a + j * K + k);
      for (int i = 0; i < MT; i++) sum[i][j] = Lanes::fma(xv[i], av, sum[i][j]);
    }
  }
  if (k < K) {
    for (int j = 0; j < RT; j++) {
      const auto av = load_part<Lanes>(a + j * K + k, K - k);
      for (int i = 0; i < MT; i++)
        sum[i][j] = Lanes::fma(load_part<Lanes>(x[i] + k, K - k), av, sum[i][j]);
    }
  }
  for (int i = 0; i < MT; i++)
    for (int j = 0; j < RT; j++) h[i * ldh + j] = Isa::sum(sum[i][j]);
}

// Rows [from, to) of A.
template <class T, class W, int MT>
inline void shrink(const T* const* x, const W* a, int64_t K, int64_t rank, int64_t from, int64_t to,
                   float* h) {
  constexpr int RT = MT == 1 ? kLongRanks : kRanks;
  int64_t j = from;
  for (; j + RT <= to; j += RT) shrink_block<T, W, MT, RT>(x, a + j * K, K, h + j, rank);
  for (; j + 2 <= to; j += 2) shrink_block<T, W, MT, 2>(x, a + j * K, K, h + j, rank);
  for (; j < to; j++) shrink_block<T, W, MT, 1>(x, a + j * K, K, h + j, rank);
}

// Columns [0, NV vectors) of y; b is row-major with row stride ldb, W or packed floats.
template <class T, class W, int MT, int NV>
inline void expand_block(T* const* y, const float* h, const W* b, int64_t ldb, int64_t rank,
                         int64_t n) {
  Isa::Vec sum[MT][NV];
  for (int i = 0; i < MT; i++)
    for (int v = 0; v < NV; v++) sum[i][v] = Isa::zero();
  for (int64_t j = 0; j < rank; j++) {
    Isa::Vec bv[NV];
    for (int v = 0; v < NV; v++) bv[v] = Isa::load(b + j * ldb + v * Isa::kWidth);
    for (int i = 0; i < MT; i++) {
      const Isa::Vec hv = Isa::set1(h[i * rank + j]);
      for (int v = 0; v < NV; v++) sum[i][v] = Isa::fma(hv, bv[v], sum[i][v]);
    }
  }
  for (int i = 0; i < MT; i++)
    for (int v = 0; v < NV; v++) {
      T* p = y[i] + n + v * Isa::kWidth;
      Isa::store(p, Isa::add(Isa::load(p), sum[i][v]));
    }
}

template <class T, class W, int MT>
inline void expand_tail(T* const* y, const float* h, const W* b, int64_t N, int64_t rank,
                        int64_t n, int64_t to) {
  Isa::Vec sum[MT];
  for (int i = 0; i < MT; i++) sum[i] = Isa::zero();
  for (int64_t j = 0; j < rank; j++) {
    const Isa::Vec bv = load_part(b + j * N + n, to - n);
    for (int i = 0; i < MT; i++) sum[i] = Isa::fma(Isa::set1(h[i * rank + j]), bv, sum[i]);
  }
  for (int i = 0; i < MT; i++) add_part(y[i] + n, sum[i], to - n);
}

// Adds up R of the `rank` rows of B, from row j on, each times its h, for the first columns of y:
// in `sum` between passes, and after the last row into y. Returns the row that comes next.
template <class T, class W, int R>
inline int64_t stream_rows(T* y, const float* h, const W* b, int64_t ldb, int64_t rank, int64_t j,
                           int64_t columns, float* sum) {
  Isa::Vec hv[R];  // out of the loop: for all the compiler knows its stores change h
  for (int i = 0; i < R; i++) hv[i] = Isa::set1(h[j + i]);
  const W* rows = b + j * ldb;
  const bool first = j == 0, last = j + R == rank;
  for (int64_t n = 0; n < columns; n += Isa::kWidth) {
    Isa::Vec s = first ? Isa::zero() : Isa::load(sum + n);
    for (int i = 0; i < R; i++) s = Isa::fma(hv[i], Isa::load(rows + i * ldb + n), s);
    if (last) Isa::store(y + n, Isa::add(Isa::load(y + n), s));
    else Isa::store(sum + n, s);
  }
  return j + R;
}

// One token: rows of B as they lie in memory, for as many columns as stay in the first cache. What
// a column adds up, and in which order, is what expand_block does.
template <class T, class W>
inline int64_t expand_stream(T* y, const float* h, const W* b, int64_t N, int64_t rank, int64_t n,
                             int64_t to) {
  alignas(64) float sum[kStreamColumns];
  while (n + Isa::kWidth <= to) {
    int64_t columns = to - n < kStreamColumns ? to - n : kStreamColumns;
    columns -= columns % Isa::kWidth;
    int64_t j = 0;
    while (j + kStreamRows <= rank)
      j = stream_rows<T, W, kStreamRows>(y + n, h, b + n, N, rank, j, columns, sum);
    if (j + kFewRows <= rank)
      j = stream_rows<T, W, kFewRows>(y + n, h, b + n, N, rank, j, columns, sum);
    while (j < rank) j = stream_rows<T, W, 1>(y + n, h, b + n, N, rank, j, columns, sum);
    n += columns;
  }
  return n;
}

// Columns [n, to) of y.
template <class T, class W, int MT>
inline void expand(T* const* y, const float* h, const W* b, int64_t N, int64_t rank, int64_t n,
                   int64_t to) {
  if (MT == 1) n = expand_stream<T, W>(y[0], h, b, N, rank, n, to);
  // Fewer tokens leave registers for more columns: longer runs of each row of B.
  constexpr int NV = MT == 2 ? 4 : 3;
  for (; n + NV * Isa::kWidth <= to; n += NV * Isa::kWidth)
    expand_block<T, W, MT, NV>(y, h, b + n, N, rank, n);
  for (; n + Isa::kWidth <= to; n += Isa::kWidth)
    expand_block<T, W, MT, 1>(y, h, b + n, N, rank, n);
  if (n < to) expand_tail<T, W, MT>(y, h, b, N, rank, n, to);
}

// Columns [n, returned) for all tokens of a tile, each block of B copied once to where its rows
// are neighbours: rows of the pool lie N apart, which for round N all fall into one cache set.
template <class T, class W>
inline int64_t expand_packed(T* const* y, const float* h, const W* b, int64_t N, int64_t rank,
                             int length, int64_t n, int64_t to) {
  constexpr int kColumns = 3 * Isa::kWidth;
  alignas(64) float packed[kPackRank * kColumns];
  for (; n + kColumns <= to; n += kColumns) {
    for (int64_t j = 0; j < rank; j++)
      for (int v = 0; v < 3; v++)
        Isa::store(packed + j * kColumns + v * Isa::kWidth,
                   Isa::load(b + j * N + n + v * Isa::kWidth));
    int t = 0;
    for (; t + kTokens <= length; t += kTokens)
      expand_block<T, float, kTokens, 3>(y + t, h + t * rank, packed, kColumns, rank, n);
    for (; t < length; t++)
      expand_block<T, float, 1, 3>(y + t, h + t * rank, packed, kColumns, rank, n);
  }
  return n;
}

template <class T, int MT>
inline void rows_of(const LbTile& tile, int first, const T** x, T** y, int64_t column) {
  for (int i = 0; i < MT; i++) {
    const int64_t row = tile.rows[first + i];
    x[i] = reinterpret_cast<const T*>(tile.x) + row * tile.x_stride;
    y[i] = reinterpret_cast<T*>(tile.y) + row * tile.y_stride + column;
  }
}

// One slice of a tile.
template <class W>
struct Slice {
  const W *a, *b;
  int64_t K, N, rank, column;
};

template <class T, class W, int MT>
inline void some_tokens(const LbTile& tile, int first, const Slice<W>& slice, int64_t from,
                        int64_t to, bool shrinks) {
  const T* x[MT];
  T* y[MT];
  rows_of<T, MT>(tile, first, x, y, slice.column);
  float* h = tile.h + first * slice.rank;
  if (shrinks) shrink<T, W, MT>(x, slice.a, slice.K, slice.rank, from, to, h);
  else expand<T, W, MT>(y, h, slice.b, slice.N, slice.rank, from, to);
}

template <class T, class W>
inline void all_tokens(const LbTile& tile, const Slice<W>& slice, int64_t from, int64_t to,
                       bool shrinks) {
  int t = 0;
  for (; t + kTokens <= tile.length; t += kTokens)
    some_tokens<T, W, kTokens>(tile, t, slice, from, to, shrinks);
  switch (tile.length - t) {
    case 3: some_tokens<T, W, 3>(tile, t, slice, from, to, shrinks); break;
    case 2: some_tokens<T, W, 2>(tile, t, slice, from, to, shrinks); break;
    case 1: some_tokens<T, W, 1>(tile, t, slice, from, to, shrinks); break;
    default: break;
  }
}

template <class T, class W>
inline void expand_all(const LbTile& tile, const Slice<W>& slice, int64_t from, int64_t to) {
  if (tile.length >= kPackFrom && tile.length <= kMaxTile && slice.rank <= kPackRank) {
    T* y[kMaxTile];
    for (int t = 0; t < tile.length; t++)
      y[t] = reinterpret_cast<T*>(tile.y) + tile.rows[t] * tile.y_stride + slice.column;
    from = expand_packed(y, tile.h, slice.b, slice.N, slice.rank, tile.length, from, to);
  }
  all_tokens<T, W>(tile, slice, from, to, false);
}

template <class T, class W>
inline void tile_of(const LbTile& tile) {
  const LbLayer& layer = *tile.layer;
  const W* pool = static_cast<const W*>(layer.pool);
  for (int s = 0; s < layer.slices; s++) {
    const int64_t entry = static_cast<int64_t>(tile.slot) * layer.slices + s;
    const int64_t rank = layer.ranks[entry], column = layer.slice_starts[s];
    if (rank == 0 || (tile.part != LB_WHOLE && s != tile.slice)) continue;
    const Slice<W> slice{pool + layer.a_offsets[entry], pool + layer.b_offsets[entry],
                         layer.in_features, layer.slice_starts[s + 1] - column, rank, column};
    const bool whole = tile.part == LB_WHOLE;
    if (whole || tile.part == LB_SHRINK)
      all_tokens<T, W>(tile, slice, whole ? 0 : tile.from, whole ? rank : tile.to, true);
    if (whole || tile.part == LB_EXPAND)
      expand_all<T, W>(tile, slice, whole ? 0 : tile.from, whole ? slice.N : tile.to);
  }
}

inline void run_tile(const LbTile& tile) {
  const LbLayer& layer = *tile.layer;
  const int32_t weights = layer.types == nullptr ? layer.dtype : layer.types[tile.slot];
  switch (layer.dtype) {
    case LB_BF16: tile_of<Bf16, Bf16>(tile); break;
    case LB_FP16: tile_of<Fp16, Fp16>(tile); break;
    default:
      if (weights == LB_BF16) tile_of<float, Bf16>(tile);
      else if (weights == LB_FP16) tile_of<float, Fp16>(tile);
      else tile_of<float, float>(tile);
  }
}

}  // namespace
