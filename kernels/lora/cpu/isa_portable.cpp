// Any machine: arrays of 8 floats that the compiler vectorises as far as the target allows.
#include <stdint.h>
#include <string.h>

namespace {
struct Bf16;
struct Fp16;
struct Isa {
  static constexpr int kWidth = 8;
  template <class T, class W> using Lanes = Isa;
  struct Vec { float lane[kWidth]; };
  static inline Vec zero() { return Vec{}; }
  static inline Vec set1(float value) {
    Vec v;
    for (float& lane : v.lane) lane = value;
    return v;
  }
  static inline Vec add(Vec a, const Vec& b) {
    for (int i = 0; i < kWidth; i++) a.lane[i] += b.lane[i];
    return a;
  }
  static inline Vec fma(const Vec& a, const Vec& b, Vec c) {
    for (int i = 0; i < kWidth; i++) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }
  static inline float sum(const Vec& v) {
    const float* p = v.lane;
    return ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
  }
  static inline Vec load(const float* p) {
    Vec v;
    memcpy(v.lane, p, sizeof v.lane);
    return v;
  }
  static inline void store(float* p, const Vec& v) { memcpy(p, v.lane, sizeof v.lane); }
  static inline Vec load(const Bf16* p);
  static inline Vec load(const Fp16* p);
  static inline void store(Bf16* p, const Vec& v);
  static inline void store(Fp16* p, const Vec& v);
};
}  // namespace

#include "tile.h"

namespace {
inline float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float from_half(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Shifted into place a half's exponent is 112 too small; the product also norms subnormals.
  return as_float(sign | as_bits(as_float(rest << 13) * 0x1p112f));
}
inline uint16_t to_half(float value) {
  const uint32_t bits = as_bits(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return sign | 0x7e00u;
  if (rest >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
  if (rest < 0x38800000u)                          // subnormal: the adder rounds to even
    return sign | (as_bits(as_float(rest) + 0.5f) - 0x3f000000u);
  return sign | (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13;
}
inline uint16_t to_bf16(float value) {
  const uint32_t bits = as_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40u;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
inline Isa::Vec Isa::load(const Bf16* p) {
  Vec v;
  for (int i = 0; i < kWidth; i++) v.lane[i] = as_float(uint32_t(p[i].bits) << 16);
  return v;
}
inline Isa::Vec Isa::load(const Fp16* p) {
  Vec v;
  for (int i = 0; i < kWidth; i++) v.lane[i] = from_half(p[i].bits);
  return v;
}
inline void Isa::store(Bf16* p, const Vec& v) {
  for (int i = 0; i < kWidth; i++) p[i].bits = to_bf16(v.lane[i]);
}
inline void Isa::store(Fp16* p, const Vec& v) {
  for (int i = 0; i < kWidth; i++) p[i].bits = to_half(v.lane[i]);
}
}  // namespace

void lb_tile_portable(const LbTile& tile) { run_tile(tile); }
