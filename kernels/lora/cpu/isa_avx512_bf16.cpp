// AVX-512 with BF16: where x and A are both bf16, shrink multiplies pairs of them as they are and
// sums them in float32. Expand does not: its h is float32, which rounding to bf16 would cost
// digits, and the tiles of a prompt widen B only once.
#if defined(__x86_64__)
#include "avx512.h"

namespace {
// 32 bf16 at a time. Products are exact in float32; subnormals count as zero.
struct Pairs {
  static constexpr int kWidth = 32;
  using Vec = __m512bh;
  static inline Vec load(const Bf16* p) { return (Vec)_mm512_loadu_si512(p); }
  static inline Avx512::Vec fma(Vec a, Vec b, Avx512::Vec c) {
    return _mm512_dpbf16_ps(c, a, b);
  }
};

template <class T, class W> struct LanesOf { using Type = Avx512; };
template <> struct LanesOf<Bf16, Bf16> { using Type = Pairs; };

struct Isa : Avx512 {
  template <class T, class W> using Lanes = typename LanesOf<T, W>::Type;
};
}  // namespace

#include "tile.h"

void lb_tile_avx512_bf16(const LbTile& tile) { run_tile(tile); }
#endif
