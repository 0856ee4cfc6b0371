// AVX-512 F, BW, VL, DQ: 16 floats at a time; bf16 and fp16 are widened on load. For isa_avx512.cpp
// and isa_avx512_bf16.cpp, each of which compiles its own copy.
#include <immintrin.h>
#include <stdint.h>

namespace {
struct Bf16;
struct Fp16;
struct Avx512 {
  static constexpr int kWidth = 16;
  using Vec = __m512;
  static inline Vec zero() { return _mm512_setzero_ps(); }
  static inline Vec set1(float value) { return _mm512_set1_ps(value); }
  static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }
  static inline __m256i load16(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static inline Vec load(const Bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(p)), 16));
  }
  static inline Vec load(const Fp16* p) { return _mm512_cvtph_ps(load16(p)); }
  static inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static inline void store(Bf16* p, Vec v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i even = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i rounded =
        _mm512_mask_or_epi32(even, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  static inline void store(Fp16* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};
}  // namespace
