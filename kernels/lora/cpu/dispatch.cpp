// Chooses the instruction set at run time and spreads tiles over the threads that torch has.
//
// Threads: this library links no OpenMP runtime. A second one in the process would bring a second
// team of spinning threads that fights torch's for the cores. Instead it borrows the runtime that
// is there: torch loads its libgomp (or an operator preloads libiomp, which has the same entry
// point) into the global scope, and GOMP_parallel of that runtime runs our tiles on torch's own
// team. Without one the calling thread does the work.
#include <dlfcn.h>
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
    const int32_t* tile = job.step->tiles + 3 * static_cast<int64_t>(index);
    job.kernel(LbTile{job.layer, job.x, job.y, job.x_stride, job.y_stride,
                      job.step->order + tile[1], tile[0], tile[2], h});
  }
}

LbTileKernel kernel_of(int isa) {
  switch (isa) {
    case LB_PORTABLE: return lb_tile_portable;
#if defined(__x86_64__)
    case LB_AVX2: return lb_tile_avx2;
    case LB_AVX512: return lb_tile_avx512;
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
    return avx2 ? (avx512 ? LB_AVX512 : LB_AVX2) : LB_PORTABLE;
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
  int64_t scratch = 0, macs = 0;
  for (int32_t index = 0; index < tiles; index++) {
    const int32_t* tile = step->tiles + 3 * static_cast<int64_t>(index);
    for (int s = 0; s < layer->slices; s++) {
      const int64_t h = layer->ranks[static_cast<int64_t>(tile[0]) * layer->slices + s] *
                        static_cast<int64_t>(tile[2]);
      if (h > scratch) scratch = h;
      macs += h * (layer->in_features + columns / layer->slices);
    }
  }
  if (scratch == 0) return 0;
  Job job{layer, step, static_cast<const char*>(x), static_cast<char*>(y), x_stride, y_stride,
          kernel, scratch, 0, 0};
  if (threads > tiles) threads = tiles;
  if (threads > 1 && macs >= kSerialWork && gomp_parallel() != nullptr)
    gomp_parallel()(work, &job, static_cast<unsigned>(threads), 0);
  else
    work(&job);
  return job.failed ? -2 : 0;
}
