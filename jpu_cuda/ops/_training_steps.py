"""The launches that a JPU's training is made of, one operator each; :mod:`.trained_pyramid` puts them together.

None is called but from there, below autograd and never traced: they have no derivatives and no fake kernels.

N images of HW pixels; D branches of C input channels and O outputs; A is the type of sums, float32, or float64 for
float64. "Rows" are [N·HW, channels] of channels_last images, one pixel after the other. Statistics are of R sets: all
images together (R = 1), or each image (R = N) for GroupNorm.
"""

from __future__ import annotations

from ._library import define

_DEPTHWISE = "Tensor[] levels, Tensor[] depthwise, int[] dilations"
_GROUP = "int first, int branches"  # which of the D branches, one after the other

# Of z, the depthwise sums: moments [N, S, D, 2, C] in A, mean and M2 (the sum of squared differences from it) over the
# pixels of each of S parts of an image; and counts [S, D], int32, how many pixels these are (0 for a part that a branch
# has not). Only of branches that are `wanted` (a number each); others' entries are not defined.
define(f"training_moments({_DEPTHWISE}, int[] wanted) -> Tensor[]")

# q = pointwise · (scale · z + shift), [N, D·O, H, W], channels_last, in the levels' dtype; moments [N, S, D, 2, O] and
# counts [S, D] of q as stored, as above. The rest says how products are done, as for separable_pyramid.
define(
    f"training_products({_DEPTHWISE}, Tensor[] pointwise, Tensor scale, Tensor shift, bool allow_tf32, int arch, "
    "str policy, int workspace_bytes=0) -> Tensor[]"
)

# From moments and counts: statistics [R, 5, D, C] in A, namely mean, biased variance, 1 / √(variance + eps), and the
# norm as an affine map, scale and shift. Entries of mean and var are None for norms that take the batch's statistics;
# where groups > 0, for GroupNorm, all are.
define(
    "training_statistics(Tensor moments, Tensor counts, Tensor?[] weight, Tensor?[] bias, Tensor?[] mean, "
    "Tensor?[] var, float[] eps, int groups) -> Tensor"
)

# ReLU(scale · q + shift), channels_last as q is.
define("training_output(Tensor q, Tensor statistics) -> Tensor")

# With g = gradient · [output > 0] and ŷ = (q − mean) / √(var + eps): Σ g, Σ g·ŷ and Σ ŷ over the pixels of each of S
# parts of an image, [N, S, 3, D, O] in A.
define("training_output_sums(Tensor gradient, Tensor q, Tensor statistics) -> Tensor")

# What a norm's gradient comes to. `sums` [I, S, 3, D, C] as above, over parts of I images (or of all of them as one) of
# `pixels` each. With dx = k · dy − a − b · x̂: coefficients [R, 3, D, C] (k, a, b); totals [I, D, C], Σ dx; gradients
# [2, D, C] of weights and biases; all in A. `batch`: for each branch, 1 where statistics are the batch's.
define(
    "training_coefficients(Tensor sums, Tensor statistics, Tensor?[] weight, int[] batch, int groups, int pixels) "
    "-> Tensor[]"
)

# dq = k · g − a − b · ŷ of some branches: rows [branches, N·HW, O] in the dtype of q.
define(
    f"training_output_gradient(Tensor gradient, Tensor q, Tensor statistics, Tensor coefficients, {_GROUP}) -> Tensor"
)

# ẑ = (z − mean) / √(var + eps) of some branches: rows [branches, N·HW, C] in the levels' dtype.
define(f"training_normalised({_DEPTHWISE}, Tensor statistics, {_GROUP}) -> Tensor")

# From products [branches, R, O, C] = dqᵀ · ẑ of each set, in A: the gradient of the pointwise weights, [branches, O, C]
# in their dtype, Σ_R products · weight + totals · biasᵀ; and sums [R, 1, 3, branches, C] for training_coefficients, of
# dh = dq · pointwise: Σ dh = pointwiseᵀ · totals, Σ dh·ẑ = Σ_O pointwise · products, and 0. `totals` [N, D, O].
# Weights and biases are those of the norms before the pointwise convolutions, of all D branches.
define(
    "training_pointwise_gradient(Tensor products, Tensor[] pointwise, Tensor totals, Tensor?[] weight, "
    f"Tensor?[] bias, {_GROUP}) -> Tensor[]"
)

# In place of dh, rows [branches, N·HW, C]: dz = k · dh − a − b · ẑ, in their dtype. Returns the gradient of the
# depthwise weights, [branches, C, 1, 3, 3] in their dtype; or nothing. `coefficients` [R, 3, branches, C].
define(
    f"training_depthwise_gradient({_DEPTHWISE}, Tensor coefficients, Tensor normalised, Tensor(a!) gradient, "
    f"{_GROUP}, bool weights) -> Tensor[]"
)

# Adds to the gradients of the levels, or puts there, what dz of some branches amounts to. `gradients` has an entry for
# each level, channels_last, None where none is wanted; `channels` are those of each.
define(
    "training_level_gradient(Tensor dz, Tensor[] depthwise, int[] dilations, Tensor(a!)?[] gradients, "
    f"int[] channels, bool add, {_GROUP}) -> ()"
)
