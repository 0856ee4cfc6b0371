// AVX2 + FMA + F16C: 8 floats at a time; bf16 and fp16 are widened on load.
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdint.h>

namespace {
struct Bf16;
struct Fp16;
struct Isa {
  static constexpr int kWidth = 8;
  template <class T, class W> using Lanes = Isa;
  using Vec = __m256;
  static inline Vec zero() { return _mm256_setzero_ps(); }
  static inline Vec set1(float value) { return _mm256_set1_ps(value); }
  static inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static inline float sum(Vec v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static inline __m128i load8(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static inline Vec load(const Bf16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load8(p)), 16));
  }
  static inline Vec load(const Fp16* p) { return _mm256_cvtph_ps(load8(p)); }
  static inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static inline void store(Bf16* p, Vec v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i even = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(even, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static inline void store(Fp16* p, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};
}  // namespace

#include "tile.h"

void lb_tile_avx2(const LbTile& tile) { run_tile(tile); }
#endif
