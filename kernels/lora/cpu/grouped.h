// The C ABI of the grouped LoRA kernel: raw pointers only, so one build fits every torch version.
#ifndef LOREBASE_GROUPED_H
#define LOREBASE_GROUPED_H
#include <stdint.h>

#define LB_API __attribute__((visibility("default")))
// Counts changes of what follows; native.py mirrors it and refuses a library of another number.
#define LB_ABI 3

extern "C" {

enum LbDtype { LB_FP32 = 0, LB_BF16 = 1, LB_FP16 = 2 };
enum LbIsa { LB_PORTABLE = 0, LB_AVX2 = 1, LB_AVX512 = 2, LB_AVX512_BF16 = 3 };

// One layer's tables (see pool.py). Offsets count elements, of the slot's own type, from `pool`.
struct LbLayer {
  const void* pool;
  const int64_t* a_offsets;     // [slots, slices]
  const int64_t* b_offsets;     // [slots, slices]
  const int32_t* ranks;         // [slots, slices]
  const int32_t* slice_starts;  // [slices + 1]
  int64_t in_features;
  int32_t slices;
  int32_t dtype;         // of x and y
  const int32_t* types;  // [slots]: of A and B where dtype is LB_FP32; null: dtype everywhere
};

// One step's plan (see metadata.py).
struct LbStep {
  const int32_t* counts;  // [4]: tiles, ...
  const int32_t* tiles;   // [tiles, 3]: slot, first, length
  const int32_t* order;   // token rows by slot
};

// y[t, slice s] += B_s (A_s x_t) for every token in the plan's tiles, in place.
// x and y have the layer's dtype, unit stride along features, row strides in elements.
// Returns 0, or -1 for an instruction set that this machine lacks, -2 when out of memory.
LB_API int lb_linear(const LbLayer* layer, const LbStep* step, const void* x, int64_t x_stride,
                     void* y, int64_t y_stride, int threads, int isa);

// One matrix of an adapter that is packed (see packing.py).
struct LbCopy {
  int64_t source;  // first byte
  int64_t target;  // first element
  int64_t rows, columns;
  int64_t transposed;  // whether it is written as [columns, rows]
};

// Copies matrices of `itemsize` bytes an element, 2 or 4; both sides are aligned to it. Returns how
// many of the transposed ones are all zero, or -1 for another itemsize.
LB_API int64_t lb_pack(const void* source, void* target, const LbCopy* copies, int64_t count,
                       int itemsize);

LB_API int lb_abi_version(void);     // LB_ABI of the sources that it was built from
LB_API int lb_best_isa(void);        // the widest LbIsa that machine and build have
LB_API int lb_shares_threads(void);  // 1 if the process has an OpenMP runtime to borrow

}  // extern "C"

// What is done of a tile: all, or of one slice rows [from, to) of A or columns [from, to) of B.
enum LbPart { LB_WHOLE = 0, LB_SHRINK = 1, LB_EXPAND = 2 };

// One tile, on one thread; a copy per instruction set. `h` holds a slice's rank floats per token.
struct LbTile {
  const LbLayer* layer;
  const char* x;
  char* y;
  int64_t x_stride, y_stride;
  const int32_t* rows;
  int32_t slot, length;
  float* h;
  int32_t part, slice;
  int64_t from, to;
};
using LbTileKernel = void (*)(const LbTile&);
void lb_tile_portable(const LbTile&);
#if defined(__x86_64__)
void lb_tile_avx2(const LbTile&);
void lb_tile_avx512(const LbTile&);
void lb_tile_avx512_bf16(const LbTile&);
#endif
#endif
