// The coordinates of bilinear interpolation along one axis, in exact integer arithmetic.
//
// Position r of the large image lies at position(r) / denominator of the small one (half-pixel centres, or
// corners aligned, as torch.nn.functional.interpolate defines them). Index and remainder are exact, so each
// weight is rounded once, where float coordinates lose digits as images grow.
#pragma once

#include "device/numeric.h"
#include "device/target.h"
#include "upsample_concat/upsample_concat.h"

namespace jpu::upsample_concat {

// Aligned so that a tap of floats is one 16-byte access. Doubles keep 24 bytes: of 32, every fourth tap would
// lie in the same banks of shared memory.
template <class A>
struct alignas(sizeof(A) == 4 ? 16 : 8) Tap {
  int32_t first, second;  // pixels of the small image
  A weight_first, weight_second;

  // The last pixel that takes part. From one position to the next it grows by one at most, unless the small
  // image is the larger one.
  JPU_DEVICE int32_t reach() const { return weight_second == 0 ? first : second; }
};

struct Axis {
  int64_t step, start, denominator;  // position(r) = step·r + start
  int64_t last;                      // the small image's last pixel
  int64_t size;                      // of the large image
  Inverse inverse;

  JPU_HOST_DEVICE Axis(int32_t small, int32_t large, bool align_corners, Inverse given = {}) {
    last = small - 1;
    size = large;
    inverse = given;
    if (!align_corners) {
      step = 2 * static_cast<int64_t>(small);
      start = static_cast<int64_t>(small) - large;
      denominator = 2 * static_cast<int64_t>(large);
    } else {
      // A single pixel is the small image's first one.
      step = large > 1 ? last : 0;
      start = 0;
      denominator = large > 1 ? large - 1 : 1;
    }
  }

  // Clamped to the centres of the outermost pixels.
  JPU_DEVICE int64_t position(int64_t r) const {
    const int64_t p = step * r + start;
    const int64_t end = last * denominator;
    return p < 0 ? 0 : (p > end ? end : p);
  }

  template <class A>
  JPU_DEVICE Tap<A> tap(int64_t r) const {
    const int64_t p = position(r);
    const int64_t first = quotient(p, denominator, inverse.denominator);
    const int64_t rest = p - first * denominator;
    return {static_cast<int32_t>(first), static_cast<int32_t>(first < last ? first + 1 : last),
            share<A>(denominator - rest), share<A>(rest)};
  }

  // The weight of small pixel y in large pixel r, within its support: the same number that tap() gives.
  template <class A>
  JPU_DEVICE A weight(int64_t r, int64_t y) const {
    const int64_t distance = position(r) - y * denominator;
    return share<A>(denominator - (distance < 0 ? -distance : distance));
  }

  // The large pixels to which small pixel y contributes are [support_begin(y), support_end(y)).
  JPU_DEVICE int32_t support_begin(int64_t y) const { return y == 0 ? 0 : first_at((y - 1) * denominator + 1); }
  JPU_DEVICE int32_t support_end(int64_t y) const {
    return y == last ? static_cast<int32_t>(size) : first_at((y + 1) * denominator);
  }

 private:
  // part / denominator, by a step of Newton's method from the rounded inverse: as a division rounds it, without
  // a division's slow path.
  template <class A>
  JPU_DEVICE A share(int64_t part) const {
    const A numerator = static_cast<A>(part), divisor = static_cast<A>(denominator);
    const A reciprocal = static_cast<A>(inverse.denominator);
    const A estimate = numerator * reciprocal;
    return multiply_add(multiply_add(-estimate, divisor, numerator), reciprocal, estimate);
  }

  // ⌊p / divisor⌋ for quotients below 2^31: the estimate is off by one at most.
  JPU_DEVICE static int64_t quotient(int64_t p, int64_t divisor, double reciprocal) {
    const int64_t estimate = static_cast<int64_t>(static_cast<double>(p) * reciprocal);
    const int64_t rest = p - estimate * divisor;
    return rest < 0 ? estimate - 1 : (rest >= divisor ? estimate + 1 : estimate);
  }

  // The first r with step·r + start >= p, for p > 0; size if there is none.
  JPU_DEVICE int32_t first_at(int64_t p) const {
    const int64_t rise = p - start;
    if (rise <= 0) return 0;
    // No quotient beyond the end is formed: it could exceed what quotient() takes.
    if (rise > step * (size - 1)) return static_cast<int32_t>(size);
    return static_cast<int32_t>(quotient(rise + step - 1, step, inverse.step));
  }
};

}  // namespace jpu::upsample_concat
