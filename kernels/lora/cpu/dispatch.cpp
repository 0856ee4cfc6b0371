// Chooses the instruction set at run time and spreads tiles over the threads that torch has. Fewer
// tiles than threads, as when one request decodes, are divided further: first rows of A, and when
// all are done columns of B.
//
// Threads: this library links no OpenMP runtime. A second one in the process would bring a second
// team of spinning threads that fights torch's for the cores. Instead it borrows the runtime that
// is there: torch loads its libgomp (or an operator preloads libiomp, which has the same entry
// point) into the global scope, and GOMP_parallel of that runtime runs our tiles on torch's own
// team. Without one the calling thread does the work.
#include <dlfcn.h>
#include <sched.h>
#include <stdlib.h>

#include "grouped.h"

namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Below this many multiply-adds a call is over before other threads have woken up.
constexpr int64_t kSerialWork = 1 << 18;

GompParallel gomp_parallel() {
  static const GompParallel found =
      reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

struct Scratch {
  float* data = nullptr;
  int64_t size = 0;
  ~Scratch() { free(data); }
  float* at_least(int64_t wanted) {
    if (wanted > size) {
      free(data);
      const size_t bytes = (wanted * sizeof(float) + 63) / 64 * 64;
      data = static_cast<float*>(aligned_alloc(64, bytes));
      size = data ? wanted : 0;
    }
    return data;
  }
};

struct Job {
  const LbLayer* layer;
  const LbStep* step;
  const char* x;
  char* y;
  int64_t x_stride, y_stride;
  LbTileKernel kernel;
  int64_t scratch;
  int32_t next;
  int32_t failed;

  // Of divided tiles: h of all of them, and how much of the first phase there is and is done.
  float* h;
  int32_t threads, shrinks, shrunk;

  LbTile tile(int32_t index, float* own) const {
    const int32_t* of = step->tiles + 3 * static_cast<int64_t>(index);
    return LbTile{layer, x, y, x_stride, y_stride, step->order + of[1],
                  of[0], of[2], own, LB_WHOLE, 0, 0, 0};
  }
  int64_t rank(int32_t index, int slice) const {
    const int32_t slot = step->tiles[3 * static_cast<int64_t>(index)];
    return layer->ranks[static_cast<int64_t>(slot) * layer->slices + slice];
  }
};

void work(void* argument) {
  static thread_local Scratch scratch;
  Job& job = *static_cast<Job*>(argument);
  const int32_t tiles = job.step->counts[0];
  for (;;) {
    const int32_t index = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
    if (index >= tiles) return;
    float* h = scratch.at_least(job.scratch);
    if (h == nullptr) {
      __atomic_store_n(&job.failed, 1, __ATOMIC_RELAXED);
      return;
    }
    job.kernel(job.tile(index, h));
  }
}

// Equal shares for all threads in whole vectors, but not so small that starting one costs more.
int64_t share(int64_t size, int32_t threads, int64_t unit, int64_t least) {
  const int64_t each = ((size + threads - 1) / threads + unit - 1) / unit * unit;
  return each > least ? each : least;
}

int64_t share_of(const Job& job, int slice, int64_t rank, bool shrinks) {
  if (shrinks) return share(rank, job.threads, 8, 8);
  const int64_t columns = job.layer->slice_starts[slice + 1] - job.layer->slice_starts[slice];
  return share(columns, job.threads, 64, 256);
}

// Finds the index-th part of a phase; runs it if asked to. Returns how many parts were passed.
int32_t part(const Job& job, int32_t index, bool shrinks, bool runs) {
  const int32_t tiles = job.step->counts[0];
  int32_t passed = 0;
  float* h = job.h;
  for (int32_t t = 0; t < tiles; t++) {
    LbTile tile = job.tile(t, nullptr);
    for (int s = 0; s < job.layer->slices; s++) {
      const int64_t rank = job.rank(t, s);
      if (rank == 0) continue;
      const int64_t columns = job.layer->slice_starts[s + 1] - job.layer->slice_starts[s];
      const int64_t size = shrinks ? rank : columns, each = share_of(job, s, rank, shrinks);
      const int32_t parts = static_cast<int32_t>((size + each - 1) / each);
      if (runs && index < passed + parts) {
        tile.h = h;
        tile.part = shrinks ? LB_SHRINK : LB_EXPAND;
        tile.slice = s;
        tile.from = (index - passed) * each;
        tile.to = tile.from + each < size ? tile.from + each : size;
        job.kernel(tile);
        return passed;
      }
      passed += parts;
      h += rank * tile.length;
    }
  }
  return passed;
}

void work_divided(void* argument) {
  Job& job = *static_cast<Job*>(argument);
  const int32_t all = job.shrinks + part(job, 0, false, false);
  for (;;) {
    const int32_t index = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
    if (index >= all) return;
    if (index < job.shrinks) {
      part(job, index, true, true);
      __atomic_fetch_add(&job.shrunk, 1, __ATOMIC_RELEASE);
      continue;
    }
    // Whoever took the last parts of A is at work on them now, so this ends.
    for (int tries = 0; __atomic_load_n(&job.shrunk, __ATOMIC_ACQUIRE) < job.shrinks; tries++)
      if (tries >= 1024) sched_yield();
    part(job, index - job.shrinks, false, true);
  }
}

LbTileKernel kernel_of(int isa) {
  switch (isa) {
    case LB_PORTABLE: return lb_tile_portable;
#if defined(__x86_64__)
    case LB_AVX2: return lb_tile_avx2;
    case LB_AVX512: return lb_tile_avx512;
    case LB_AVX512_BF16: return lb_tile_avx512_bf16;
#endif
    default: return nullptr;
  }
}

}  // namespace

extern "C" int lb_abi_version(void) { return LB_ABI; }

extern "C" int lb_best_isa(void) {
#if defined(__x86_64__)
  static const int best = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (!avx2) return LB_PORTABLE;
    if (!avx512) return LB_AVX2;
    return __builtin_cpu_supports("avx512bf16") ? LB_AVX512_BF16 : LB_AVX512;
  }();
  return best;
#else
  return LB_PORTABLE;
#endif
}

extern "C" int lb_shares_threads(void) { return gomp_parallel() != nullptr; }

extern "C" int lb_linear(const LbLayer* layer, const LbStep* step, const void* x, int64_t x_stride,
                         void* y, int64_t y_stride, int threads, int isa) {
  if (isa > lb_best_isa()) return -1;
  const LbTileKernel kernel = kernel_of(isa);
  if (kernel == nullptr) return -1;
  const int32_t tiles = step->counts[0];
  const int64_t columns = layer->slice_starts[layer->slices];
  int64_t scratch = 0, total = 0, macs = 0;
  for (int32_t index = 0; index < tiles; index++) {
    const int32_t* tile = step->tiles + 3 * static_cast<int64_t>(index);
    for (int s = 0; s < layer->slices; s++) {
      const int64_t h = layer->ranks[static_cast<int64_t>(tile[0]) * layer->slices + s] *
                        static_cast<int64_t>(tile[2]);
      if (h > scratch) scratch = h;
      total += h;
      macs += h * (layer->in_features + columns / layer->slices);
    }
  }
  if (scratch == 0) return 0;
  Job job{layer, step, static_cast<const char*>(x), static_cast<char*>(y), x_stride, y_stride,
          kernel, scratch, 0, 0, nullptr, threads, 0, 0};
  if (threads <= 1 || macs < kSerialWork || gomp_parallel() == nullptr) {
    work(&job);
  } else if (tiles >= threads) {
    gomp_parallel()(work, &job, static_cast<unsigned>(threads), 0);
  } else {
    static thread_local Scratch shared;
    job.h = shared.at_least(total);
    if (job.h == nullptr) return -2;
    job.shrinks = part(job, 0, true, false);
    gomp_parallel()(work_divided, &job, static_cast<unsigned>(threads), 0);
  }
  return job.failed ? -2 : 0;
}
