"""Faults of upsample-concat's weights, of how its work is cut, and of its binding; the rest is beside this file.

Not listed, since no caller can tell them from the original: in ``Axis``, the guard of ``Tap.second`` (its
weight is 0 there), both guards of ``first_at`` (the quotient lies within the image without them), the low
side of ``quotient``'s correction (it takes coordinates beyond 2^51); in ``mix``, the rule for 0 (no caller
gets that far); in ``choose_path``, the direction (backward treats kSameWidth as kWidth). Nor is ``launch``'s
limit of 2^31 blocks: without it the run has no end.
"""

from __future__ import annotations

from .faults import Fault
from .upsample_concat_kernels import FAULTS as _KERNELS
from .upsample_concat_staging import FAULTS as _STAGING

_FORWARD, _BACKWARD = "upsample_concat/forward.h", "upsample_concat/backward.h"
_AXIS, _TILES = "upsample_concat/axis.h", "upsample_concat/tiles.h"
_BLOCKS, _INTEGERS = "common/blocks.h", "common/integers.h"
_LAUNCH, _BINDING = "upsample_concat/launch.h", "upsample_concat/binding.cpp"

_WEIGHTS = [
    Fault(
        "axis-no-lower-clamp",
        _AXIS,
        "return p < 0 ? 0 : (p > end ? end : p);",
        "return p > end ? end : p;",
        "Pixels before the first centre are extrapolated.",
    ),
    Fault(
        "axis-no-upper-clamp",
        _AXIS,
        "return p < 0 ? 0 : (p > end ? end : p);",
        "return p < 0 ? 0 : p;",
        "Pixels behind the last centre lose part of their weight.",
    ),
    Fault(
        "axis-half-pixel-start",
        _AXIS,
        "start = static_cast<int64_t>(small) - large;",
        "start = static_cast<int64_t>(large) - small;",
        "The half-pixel shift has the wrong sign.",
    ),
    Fault(
        "axis-no-half-pixel",
        _AXIS,
        "start = static_cast<int64_t>(small) - large;",
        "start = 0;",
        "Corners lie on corners though centres should be scaled.",
    ),
    Fault(
        "axis-denominator",
        _AXIS,
        "denominator = 2 * static_cast<int64_t>(large);",
        "denominator = 2 * static_cast<int64_t>(large) - 1;",
        "The scale is wrong by half a pixel over the image.",
    ),
    Fault(
        "axis-corners-by-size",
        _AXIS,
        "denominator = large > 1 ? large - 1 : 1;",
        "denominator = large;",
        "With aligned corners the last pixels do not coincide.",
    ),
    Fault(
        "axis-single-pixel",
        _AXIS,
        "step = large > 1 ? last : 0;",
        "step = last + 1;",
        "With aligned corners the scale is that of sizes.",
    ),
    Fault(
        "axis-single-pixel-divides-by-zero",
        _AXIS,
        "large > 1 ? large - 1 : 1;",
        "large - 1;",
        "A single pixel has a denominator of 0.",
    ),
    Fault(
        "axis-rule-inverted",
        _AXIS,
        "if (!align_corners)",
        "if (align_corners)",
        "align_corners means its opposite.",
    ),
    Fault(
        "axis-32-bits",
        _AXIS,
        "const int64_t p = step * r + start;",
        "const int64_t p = static_cast<int32_t>(step * r + start);",
        "Coordinates of sides beyond 2^15 wrap around.",
    ),
    Fault(
        "axis-weight-one-sided",
        _AXIS,
        "(distance < 0 ? -distance : distance)",
        "distance",
        "Pixels left of y weigh more than 1.",
    ),
    Fault(
        "axis-share-unrefined",
        _AXIS,
        "return multiply_add(multiply_add(-estimate, divisor, numerator), reciprocal, estimate);",
        "return multiply_add(A(0), divisor, estimate);",
        "Weights are rounded twice.",
    ),
    Fault(
        "axis-share-in-float",
        _AXIS,
        "const A estimate = numerator * reciprocal;",
        "const A estimate = static_cast<float>(numerator * reciprocal);\n    return estimate;",
        "float64's weights have 24 bits.",
    ),
    Fault(
        "axis-quotient-not-corrected",
        _AXIS,
        "(rest >= divisor ? estimate + 1 : estimate)",
        "estimate",
        "A multiple of the denominator may count for the pixel before.",
    ),
    Fault(
        "forward-row-rounded",
        _FORWARD,
        "top[v] = mix(row.weight_first, top[v], row.weight_second, bottom[v]);",
        "top[v] = mix(row.weight_first, A(widen(narrow<T>(top[v]))), row.weight_second, bottom[v]);",
        "kChannels rounds to the element type between columns and rows.",
    ),
    Fault(
        "gather-accumulates-elements",
        _BACKWARD,
        "sum = multiply_add(rows.weight<A>(r, y), line, sum);",
        "sum = widen(narrow<T>(multiply_add(rows.weight<A>(r, y), line, sum)));",
        "kElements sums in the element type.",
    ),
    Fault(
        "gather-rows-by-columns",
        _BACKWARD,
        "const A weight = rows.weight<A>(r, y);",
        "const A weight = columns.weight<A>(r, y);",
        "kChannels weighs rows as if they were columns.",
    ),
    Fault(
        "gather-width-own-row",
        _BACKWARD,
        "shared.sum[own_y][s - chunk]",
        "shared.sum[0][s - chunk]",
        "All rows of a tile get the first one's sum.",
    ),
]

_PATHS = [
    Fault(
        "path-misaligned-base",
        _LAUNCH,
        "reinterpret_cast<uintptr_t>(base) % kVectorBytes == 0 && ",
        "base != nullptr && ",
        "16 bytes are accessed at an address that is no multiple of 16.",
    ),
    Fault("path-stride-n", _LAUNCH, "stride.n % V == 0 && ", "", "Samples begin amid 16 bytes."),
    Fault("path-stride-h", _LAUNCH, "&& stride.h % V == 0 &&", "&&", "Rows begin amid 16 bytes."),
    Fault(
        "path-stride-w", _LAUNCH, "stride.c == 1 && stride.w % V == 0", "stride.c == 1", "Pixels begin amid 16 bytes."
    ),
    Fault(
        "path-stride-c", _LAUNCH, "stride.w == 1 && stride.c % V == 0", "stride.w == 1", "Planes begin amid 16 bytes."
    ),
    Fault(
        "path-channels-apart",
        _LAUNCH,
        "stride.c == 1 && stride.w % V == 0",
        "stride.w % V == 0",
        "Channels that do not follow each other are read as if they did.",
    ),
    Fault(
        "path-columns-apart",
        _LAUNCH,
        "stride.w == 1 && stride.c % V == 0",
        "stride.c % V == 0",
        "Columns that do not follow each other are read as if they did.",
    ),
    Fault("path-channel-count", _LAUNCH, "level.channels % V == 0 && ", "", "Channels beyond whole vectors are lost."),
    Fault("path-width", _LAUNCH, "p.width % V == 0 && ", "", "Columns beyond whole vectors are lost."),
    Fault(
        "path-channels-high-unchecked",
        _LAUNCH,
        " &&\n      aligned<T>(level.high, level.high_stride, true))",
        ")",
        "Only the level is looked at, not where its result goes.",
    ),
    Fault(
        "path-same-width-whatever",
        _LAUNCH,
        "level.width == p.width && ",
        "",
        "Levels of other widths are copied column by column.",
    ),
    Fault(
        "path-same-width-low-unchecked",
        _LAUNCH,
        "level.width == p.width && aligned<T>(level.low, level.low_stride, false);",
        "level.width == p.width;",
        "A level is read by 16 bytes whatever its strides.",
    ),
    Fault(
        "path-never-channels",
        _LAUNCH,
        "    return Path::kChannels;",
        "    return Path::kElements;",
        "Right, but channels_last takes eight times the instructions.",
    ),
    Fault(
        "path-never-same-width",
        _LAUNCH,
        "? Path::kSameWidth : Path::kWidth",
        "? Path::kWidth : Path::kWidth",
        "Right, but levels of the common width take the way through shared memory, or are read by elements.",
    ),
    Fault(
        "forward-elements-wrong-inside",
        _FORWARD,
        "level.high_stride.c < level.high_stride.w;",
        "level.high_stride.c > level.high_stride.w;",
        "Right, but neighbouring threads write far apart.",
    ),
    Fault(
        "backward-elements-wrong-inside",
        _BACKWARD,
        "level.low_stride.c < level.low_stride.w;",
        "level.low_stride.c > level.low_stride.w;",
        "Right, but neighbouring threads write far apart.",
    ),
]

_PLAN = [
    Fault(
        "locate-level-late",
        _BLOCKS,
        "block >= entries[index + 1].*first",
        "block > entries[index + 1].*first",
        "A level's first block works on the level before.",
    ),
    Fault(
        "locate-last-level",
        _BLOCKS,
        "index + 1 < count",
        "index + 2 < count",
        "Blocks of the last level work on the one before.",
    ),
    Fault("locate-tiles-swapped", _TILES, "rest /= l.tiles_w;", "rest /= l.tiles_h;", "Rows of tiles are miscounted."),
    Fault(
        "locate-channels-by-height",
        _TILES,
        "rest % l.tiles_c) * tile.channels;",
        "rest % l.tiles_c) * tile.height;",
        "Tiles of channels begin at the wrong channel.",
    ),
    Fault(
        "plan-tiles-rounded-down",
        _INTEGERS,
        "a / b + (a % b != 0)",
        "a / b",
        "What does not fill a tile is not computed.",
    ),
    Fault(
        "plan-forgets-the-batch",
        _LAUNCH,
        "static_cast<int64_t>(p.batch) * level.tiles_c",
        "static_cast<int64_t>(1) * level.tiles_c",
        "Only the first sample is computed.",
    ),
    Fault(
        "plan-backward-by-forward-tiles",
        _LAUNCH,
        "forward ? forward_tile<V>(level.path) : backward_tile<V>(level.path)",
        "forward_tile<V>(level.path)",
        "Backward gets the number of blocks of forward's tiles.",
    ),
    Fault(
        "plan-height-of-the-other",
        _LAUNCH,
        "forward ? p.height : level.height",
        "forward ? level.height : p.height",
        "Tiles are counted over the image that is read.",
    ),
    Fault(
        "plan-inverse-of-step",
        _LAUNCH,
        "1.0 / static_cast<double>(axis.denominator), axis",
        "1.0 / static_cast<double>(axis.step), axis",
        "Divisions by the denominator divide by the step.",
    ),
    Fault(
        "binding-skips-a-level",
        _BINDING,
        "begin += kMaxLevels;",
        "begin += kMaxLevels + 1;",
        "One level is lost between two launches.",
    ),
    Fault(
        "binding-too-many-levels",
        _BINDING,
        "i < pairs.size() && p.levels < kMaxLevels;",
        "i < pairs.size() && p.levels <= kMaxLevels;",
        "The 17th level is written behind the parameters.",
    ),
    Fault(
        "binding-height-is-width",
        _BINDING,
        "level.height = static_cast<int32_t>(low.size(2));",
        "level.height = static_cast<int32_t>(low.size(3));",
        "Levels are taken for squares.",
    ),
]

_RESULTS = [
    Fault(
        "binding-never-reversed", _BINDING, "reverse ? channels : 0;", "0;", "The reversed order starts at channel 0."
    ),
    Fault(
        "binding-reverse-too-late",
        _BINDING,
        "    if (reverse) channel -= level.size(1);\n    pairs.push_back({level, result, channel});\n",
        "    pairs.push_back({level, result, channel});\n    if (reverse) channel -= level.size(1);\n",
        "In reversed order each level is put behind its place.",
    ),
    Fault(
        "binding-format-of-the-last",
        _BINDING,
        "channels_last &= suggests_channels_last(levels[i]);",
        "channels_last = suggests_channels_last(levels[i]);",
        "The last level alone decides on the format.",
    ),
    Fault(
        "binding-sizes-swapped",
        _BINDING,
        "heights[i], widths[i]}, suggests_channels_last(g)",
        "widths[i], heights[i]}, suggests_channels_last(g)",
        "Gradients have height and width swapped.",
    ),
    Fault(
        "binding-aligned-always",
        _BINDING,
        "p.align_corners = align_corners;",
        "p.align_corners = true;",
        "align_corners=False is ignored.",
    ),
    Fault(
        "binding-any-batch",
        "binding/checks.h",
        "STD_TORCH_CHECK(t.size(0) == like.size(0), name",
        "STD_TORCH_CHECK(true, name",
        "Levels of fewer samples are read beyond their end.",
    ),
    Fault(
        "binding-any-dtype",
        "binding/checks.h",
        "STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name",
        "STD_TORCH_CHECK(true, name",
        "Levels of another dtype are read as if they were of the first one's.",
    ),
    Fault(
        "binding-any-dimensions",
        "binding/checks.h",
        "STD_TORCH_CHECK(t.dim() == 4, name",
        "STD_TORCH_CHECK(true, name",
        "Sizes of dimensions that do not exist are asked for.",
    ),
    Fault(
        "binding-empty-sizes",
        _BINDING,
        "height >= 1 && width >= 1 &&",
        "height >= 0 && width >= 0 &&",
        "Images of no size are taken.",
    ),
    Fault(
        "binding-no-longest-side", _BINDING, "height <= kMaxSize && width <= kMaxSize", "true", "Coordinates overflow."
    ),
    Fault(
        "binding-gradients-of-any-size",
        _BINDING,
        "STD_TORCH_CHECK(g.size(2) == gradients[0].size(2) && g.size(3) == gradients[0].size(3), ",
        "STD_TORCH_CHECK(true, ",
        "Gradients of other sizes are read as if they had the first one's.",
    ),
    Fault(
        "binding-too-few-sizes",
        _BINDING,
        "heights.size() == gradients.size() && widths.size() == gradients.size()",
        "heights.size() == gradients.size()",
        "Widths are read beyond their list.",
    ),
    Fault(
        "format-strides",
        "binding/tensor.h",
        "{h * w * c, 1, w * c, c}",
        "{h * w * c, 1, h * c, c}",
        "channels_last results have the row stride of a transposed image.",
    ),
    Fault(
        "format-empty-dimensions",
        "binding/tensor.h",
        "size[d] > 1 ? size[d] : 1",
        "size[d]",
        "Empty images have strides of 0, unlike torch's.",
    ),
    Fault(
        "format-ambiguous",
        "binding/tensor.h",
        "if (d == 0 && least == strides[1]) return false;",
        "",
        "Images of one pixel and one channel come out as channels_last.",
    ),
    Fault(
        "dispatch-half-as-bfloat16",
        "binding/tensor.h",
        "return f(float16{});",
        "return f(bfloat16{});",
        "float16 is read as bfloat16.",
    ),
    Fault(
        "device-float64-in-float",
        "device/numeric.h",
        "JPU_DEVICE double widen(double x) { return x; }",
        "JPU_DEVICE double widen(double x) { return static_cast<float>(x); }",
        "float64 is read with 24 bits.",
    ),
    Fault(
        "device-half-by-the-wrong-format",
        "device/numeric.h",
        "return {host::float_to_float16(x)};",
        "return {host::float_to_bfloat16(x)};",
        "float16 is written as bfloat16.",
    ),
    Fault(
        "device-half-vectors",
        "device/memory.h",
        "kSize = kVectorBytes / sizeof(T);",
        "kSize = kVectorBytes / 2 / sizeof(T);",
        "Vectors hold 8 bytes of values and access 16.",
    ),
]

FAULTS = [*_KERNELS, *_STAGING, *_WEIGHTS, *_PATHS, *_PLAN, *_RESULTS]
