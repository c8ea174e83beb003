// float16 and bfloat16, rounded to nearest with ties to even, as the hardware converts.
#include <cstring>

#include "host/device_api.h"

namespace jpu::host {

namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// bits / 2^shift, to nearest even.
uint32_t round_shift(uint32_t bits, int shift) {
  const uint32_t half = (uint32_t{1} << (shift - 1)) - 1;
  return (bits + half + (bits >> shift & 1)) >> shift;
}

}  // namespace

float bfloat16_to_float(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // the NaN that the hardware makes
  return static_cast<uint16_t>(round_shift(bits, 16));
}

float float16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  return float_of(sign | bits_of(static_cast<float>(fraction) * 0x1p-24f));
}

uint16_t float_to_float16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 2^16 or more
  if (magnitude >= 0x38800000u) return static_cast<uint16_t>(sign | (round_shift(magnitude, 13) - (112u << 10)));
  // Subnormal: the sum with 0.5 leaves the fraction's multiple of 2^-24 in the low bits.
  const float sum = float_of(magnitude) + 0.5f;
  return static_cast<uint16_t>(sign | (bits_of(sum) - 0x3f000000u));
}

}  // namespace jpu::host
