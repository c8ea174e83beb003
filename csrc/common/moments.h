// Mean and spread of values that are seen part by part: E[x²] − E[x]² loses all that the mean's square rounds away.
//
// T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
// 1979.
#pragma once

#include "device/numeric.h"

namespace jpu {

template <class A>
struct Moments {
  A count;    // of values; one beyond the type's precision is rounded, and so is then the share of a part
  A mean;     // 0 of none
  A squares;  // Σ (x − mean)²
};

// Of both parts together. Which is first decides how results round, so callers keep to an order.
template <class A>
JPU_DEVICE Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;  // or a huge mean's square would meet the 0
  const A count = a.count + b.count;
  const A share = b.count / count, difference = b.mean - a.mean;
  return {count, multiply_add(difference, share, a.mean),
          multiply_add(difference * difference, share * a.count, a.squares + b.squares)};
}

// Of those values that count, by two passes over them.
template <class A, int N>
JPU_DEVICE Moments<A> moments_of(const A (&value)[N], const bool (&counts)[N]) {
  A count = 0, sum = 0;
  JPU_UNROLL for (int i = 0; i < N; ++i) {
    if (counts[i]) {
      count += 1;
      sum += value[i];
    }
  }
  if (count == 0) return {0, 0, 0};
  const A mean = sum / count;
  A squares = 0;
  JPU_UNROLL for (int i = 0; i < N; ++i) {
    if (counts[i]) squares = multiply_add(value[i] - mean, value[i] - mean, squares);
  }
  return {count, mean, squares};
}

}  // namespace jpu
