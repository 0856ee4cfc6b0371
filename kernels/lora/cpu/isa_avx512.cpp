// AVX-512 without bf16's own instructions.
#if defined(__x86_64__)
#include "avx512.h"

namespace {
struct Isa : Avx512 {
  template <class T, class W> using Lanes = Isa;
};
}  // namespace

#include "tile.h"

void lb_tile_avx512(const LbTile& tile) { run_tile(tile); }
#endif
