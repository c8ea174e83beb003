"""Faults of separable_pyramid: its tiling, patches, products, both passes and their plans."""

from __future__ import annotations

from .faults import Fault

_FOLDER = "separable_pyramid"
_CONFIG, _TILE, _PATCH = f"{_FOLDER}/config.h", f"{_FOLDER}/tile.h", f"{_FOLDER}/patch.h"
_PRODUCT, _FORWARD, _GRADIENT = f"{_FOLDER}/product.h", f"{_FOLDER}/forward.h", f"{_FOLDER}/gradient.h"
_WEIGHT, _INPUT = f"{_FOLDER}/weight_gradient.h", f"{_FOLDER}/input_gradient.h"
_LEVEL, _REDUCE, _TERMS = f"{_FOLDER}/level_gradient.h", f"{_FOLDER}/reduce.h", f"{_FOLDER}/terms.h"
_LAUNCH, _BACKWARD, _VECTORS = f"{_FOLDER}/launch.h", f"{_FOLDER}/launch_backward.h", f"{_FOLDER}/vectors.h"
_BINDING_BACKWARD = f"{_FOLDER}/binding_backward.cpp"


def _without(name: str, file: str, old: str, breaks: str, index: int = 0, count: int = 1) -> Fault:
    """A line that is left out."""
    return Fault(name, file, old, "", breaks, index, count)


FAULTS = [
    # --- tiling
    Fault(
        "pyramid-groups-floored",
        _CONFIG,
        "ceil_divide(dilation * dilation, shape.classes)",
        "dilation * dilation / shape.classes",
        "Classes that fill no whole group are left out.",
    ),
    Fault(
        "pyramid-rows-floored",
        _CONFIG,
        "ceil_divide(ceil_divide(height, dilation), shape.height)",
        "ceil_divide(height / dilation, shape.height)",
        "The classes with a row more lose it.",
    ),
    Fault(
        "pyramid-tiles-fetch-more",
        _CONFIG,
        "as_little > little || (as_little == little && other.slots() < best.slots())",
        "other.slots() < best.slots()",
        "Small tiles are preferred, whose halos are most of what they fetch.",
    ),
    Fault(
        "pyramid-tiles-halo-forgotten",
        _CONFIG,
        "(h + 2 * (t.rows - 1)) * (w",
        "h * (w",
        "Flat tiles count as if they fetched no rows twice.",
    ),
    Fault(
        "pyramid-tiles-waste-slots",
        _CONFIG,
        "as_little == little && other.slots() < best.slots()",
        "as_little == little && other.slots() > best.slots()",
        "Tiles are chosen of which most slots have no pixel.",
    ),
    Fault(
        "pyramid-class-row-by-column",
        _TILE,
        "const int y = index / dilation +",
        "const int y = index % dilation +",
        "Classes off the diagonal are mistaken.",
    ),
    Fault(
        "pyramid-slot-of-other-class",
        _TILE,
        "return pixel_at(p, dilation, tile, line / shape.height, line % shape.height, j);",
        "return pixel_at(p, dilation, tile, 0, line % shape.height, j);",
        "Packed classes all stand for the first.",
    ),
    Fault(
        "pyramid-beyond-the-last-class",
        _TILE,
        "index < dilation * dilation && y",
        "y",
        "Slots past the last class write other classes' pixels.",
    ),
    Fault(
        "pyramid-halo-without-first-row",
        _TILE,
        "line % rows - 1, j - 1)",
        "line % rows, j - 1)",
        "The patch lies a row too low.",
    ),
    Fault(
        "pyramid-chunk-past-its-level",
        _TILE,
        "smaller(Size, p.level[level].channels - channel)",
        "Size",
        "A chunk reads on past the last channel of its level.",
    ),
    # --- patches
    Fault(
        "pyramid-outside-not-zero",
        _PATCH,
        "copy_async<kVectorBytes>(target, level.data, 0);",
        "copy_async<kVectorBytes>(target, level.data);",
        "The padding holds the first pixel.",
    ),
    Fault(
        "pyramid-elements-outside-not-zero",
        _PATCH,
        "T value{};",
        "T value = load(static_cast<const T*>(level.data));",
        "The padding holds the first pixel, element by element.",
    ),
    _without("pyramid-no-commit", _PATCH, "    commit_copies();\n", "Copies belong to no group that is waited for."),
    Fault(
        "pyramid-origin-off-by-one",
        _PATCH,
        "return dilation * (first - 1);",
        "return dilation * first;",
        "Patches begin a pixel late.",
    ),
    Fault(
        "pyramid-run-without-class",
        _PATCH,
        "(which * (shape.height + 2) + i)",
        "(which * shape.height + i)",
        "The windows of all classes but the first lie too high.",
    ),
    Fault(
        "pyramid-tap-transposed",
        _PATCH,
        "rows[i / 3][x + i % 3], sum);",
        "rows[i % 3][x + i / 3], sum);",
        "Taps are taken column by column.",
    ),
    Fault(
        "pyramid-operand-not-rounded",
        _PATCH,
        "h[x] = widen(narrow<T>(multiply_add(scale, sum, shift)));",
        "h[x] = multiply_add(scale, sum, shift);",
        "h keeps digits that the operand does not have.",
    ),
    # --- products
    Fault(
        "pyramid-sums-of-one-level",
        _PRODUCT,
        "  A sum[ThreadRows][ThreadColumns] = {};\n",
        "  A(&sum)[ThreadRows][ThreadColumns] = total;\n",
        "Chunks are added twice.",
    ),
    Fault(
        "pyramid-product-one-short",
        _PRODUCT,
        "k < Depth; ++k",
        "k + 1 < Depth; ++k",
        "The last channel of each chunk is left out.",
    ),
    Fault(
        "pyramid-row-not-interleaved",
        _PRODUCT,
        "row_group() * kSize + i % kSize;",
        "row_group() * ThreadRows + i % kSize;",
        "float64's second vector belongs to another thread.",
    ),
    # --- forward
    _without(
        "pyramid-no-barrier-before-depthwise",
        _FORWARD,
        "    block_barrier();  // the patch is there, and the product before is done\n",
        "The patch is read while others copy it.",
    ),
    _without(
        "pyramid-no-barrier-before-product",
        _FORWARD,
        "    block_barrier();  // both operands are there, and the patch is free\n",
        "Operands are read while others write them.",
    ),
    Fault(
        "pyramid-no-barrier-after-placing",
        _FORWARD,
        "  block_barrier();\n  A total[4][8] = {};",
        "  A total[4][8] = {};",
        "Copies look up places that are not there.",
    ),
    _without("pyramid-no-wait", _FORWARD, "    wait_copies<0>();\n", "The patch is read before it is copied."),
    Fault(
        "pyramid-weights-of-the-next-chunk",
        _FORWARD,
        "load_weights<T>(p, branch, first_output, chunk);",
        "load_weights<T>(p, branch, first_output, chunk_at<kSize>(p, 0, 0));",
        "Every chunk but the first has the first one's weights.",
        1,
        2,
    ),
    Fault(
        "pyramid-output-beyond",
        _FORWARD,
        "      if (first + j >= p.outputs) break;\n",
        "",
        "Threads write into the next branch's channels.",
    ),
    Fault(
        "pyramid-relu-spoils-nan",
        _FORWARD,
        "if (p.relu && value < 0) value = 0;",
        "if (p.relu && !(value > 0)) value = 0;",
        "NaN becomes 0.",
    ),
    Fault(
        "pyramid-relu-always", _FORWARD, "if (p.relu && value < 0)", "if (value < 0)", "ReLU where none was asked for."
    ),
    Fault(
        "pyramid-terms-of-the-first-image",
        _TERMS,
        "image * p.inner.scale_image + term",
        "term",
        "Every image has the first one's scale.",
    ),
    Fault(
        "pyramid-shift-of-the-first-branch",
        _TERMS,
        "const int64_t term = int64_t{index} * p.channels + channel;",
        "const int64_t term = channel;",
        "Every branch has the first one's terms.",
    ),
    # --- backward
    Fault(
        "pyramid-gradient-passes-zeros",
        _GRADIENT,
        "!(widen(outputs.at[v]) <= 0)",
        "!(widen(outputs.at[v]) < 0)",
        "Where ReLU gave 0 the gradient passes.",
        0,
        1,
    ),
    Fault(
        "pyramid-gradient-of-elements-passes",
        _GRADIENT,
        "if (!p.relu || !(widen(load(output + v * p.output_stride.c)) <= 0)) {",
        "{",
        "ReLU stops nothing, element by element.",
    ),
    Fault("pyramid-weight-slots-not-masked", _WEIGHT, "inside ? h[x] : A(0)", "A(1) + h[x]", "h is off by one."),
    Fault(
        "pyramid-weight-splits-overlap",
        _WEIGHT,
        "t += g.splits) {",
        "t += 1) {",
        "Tiles are counted by several blocks.",
    ),
    _without(
        "pyramid-weight-no-barrier-between-tiles",
        _WEIGHT,
        "    block_barrier();  // the tile before is multiplied\n",
        "Operands are overwritten while others multiply.",
    ),
    _without(
        "pyramid-weight-no-barrier-before-fetch",
        _WEIGHT,
        "      block_barrier();  // the patch is placed, or the chunk before is read\n",
        "The patch is overwritten while others read.",
    ),
    Fault(
        "pyramid-weight-no-barrier-after-fetch",
        _WEIGHT,
        "      wait_copies<0>();\n      block_barrier();\n",
        "      wait_copies<0>();\n",
        "The patch is read while others copy it.",
    ),
    Fault(
        "pyramid-weight-no-barrier-before-product",
        _WEIGHT,
        "    block_barrier();\n    multiply",
        "    multiply",
        "Operands are read while others write them.",
    ),
    Fault("pyramid-input-without-out-scale", _INPUT, "scale * value[v]", "value[v]", "dq lacks out_scale."),
    Fault("pyramid-input-gradient-not-scaled", _INPUT, "narrow<T>(scale * dh)", "narrow<T>(dh)", "dz lacks scale."),
    Fault(
        "pyramid-input-terms-of-dead-slots",
        _INPUT,
        "      if (!pixel.inside) continue;\n",
        "",
        "Slots without a pixel write.",
    ),
    _without(
        "pyramid-input-no-barrier-between-products",
        _INPUT,
        "    block_barrier();  // the product before is done\n",
        "Operands are overwritten while others multiply.",
    ),
    Fault(
        "pyramid-input-no-barrier-before-product",
        _INPUT,
        "    block_barrier();\n    multiply",
        "    multiply",
        "Operands are read while others write them.",
    ),
    _without(
        "pyramid-input-no-barrier-before-fetch",
        _INPUT,
        "    block_barrier();  // the patch is placed, or the chunk before is finished\n",
        "The patch is overwritten while others read.",
    ),
    Fault(
        "pyramid-input-no-barrier-after-fetch",
        _INPUT,
        "    wait_copies<0>();\n    block_barrier();\n    // Terms",
        "    wait_copies<0>();\n    // Terms",
        "dh is read while others write it.",
    ),
    _without(
        "pyramid-input-no-barrier-between-terms",
        _INPUT,
        "    block_barrier();  // the terms before are added\n",
        "Terms are overwritten while others add.",
    ),
    Fault(
        "pyramid-input-no-barrier-before-adding",
        _INPUT,
        "    block_barrier();\n    for (int i = thread_index(); i < kTermsAtOnce",
        "    for (int i = thread_index(); i < kTermsAtOnce",
        "Terms are added while others write.",
    ),
    Fault(
        "pyramid-input-later-terms-again",
        _INPUT,
        "first == 0 ? term[i] : term[kTermsAtOnce + i]",
        "term[i]",
        "The later terms are the earlier ones again.",
    ),
    Fault(
        "pyramid-level-tap-mirrored",
        _LEVEL,
        "const int from_y = y - dilation",
        "const int from_y = y + dilation",
        "The adjoint convolves the wrong way round.",
    ),
    Fault(
        "pyramid-level-weights-of-first-branch",
        _LEVEL,
        "const A* taps = weight + (9 * index + tap) * pitch;",
        "const A* taps = weight + tap * pitch;",
        "Every branch has the first one's taps.",
    ),
    _without("pyramid-level-no-barrier", _LEVEL, "  block_barrier();\n", "Taps are read while others write them."),
    Fault(
        "pyramid-level-edge",
        _LEVEL,
        "from_x >= p.width) continue;",
        "from_x > p.width) continue;",
        "Taps reach a column past the image.",
    ),
    Fault(
        "pyramid-reduce-without-last-split",
        _REDUCE,
        "for (int s = 0; s < g.splits; ++s) {\n      sum += load",
        "for (int s = 0; s + 1 < g.splits; ++s) {\n      sum += load",
        "The last split's products are left out.",
    ),
    Fault(
        "pyramid-reduce-weight-not-scaled",
        _REDUCE,
        "narrow<T>(scale * sum)",
        "narrow<T>(sum)",
        "The pointwise gradient lacks out_scale.",
    ),
    Fault(
        "pyramid-reduce-no-barrier",
        _REDUCE,
        "  block_barrier();\n  if (thread_index() != 0) return;",
        "  if (thread_index() != 0) return;",
        "Sums are added while others write them.",
    ),
    _without(
        "pyramid-reduce-no-barrier-between-groups",
        _REDUCE,
        "    block_barrier();  // the group before is added up\n",
        "Sums are overwritten while others add.",
    ),
    Fault(
        "pyramid-reduce-no-barrier-before-adding",
        _REDUCE,
        "    block_barrier();\n    if (row != 0",
        "    if (row != 0",
        "Sums are added while others write them.",
    ),
    Fault(
        "pyramid-reduce-one-image-for-all",
        _REDUCE,
        "p.inner.scale_image != 0 || p.inner.shift_image != 0",
        "false",
        "Terms of each image get the gradient of all.",
    ),
    # --- plans
    Fault(
        "pyramid-plan-half-a-tile",
        _LAUNCH,
        "ceil_divide(p.outputs, columns)",
        "p.outputs / columns + (p.outputs < columns)",
        "Outputs past the last whole tile are left out.",
    ),
    Fault(
        "pyramid-plan-vectors-unaligned",
        _VECTORS,
        "stride.h % V == 0 && stride.w % V == 0",
        "stride.h % V == 0",
        "Pixels that do not begin at 16 bytes are read by vectors.",
    ),
    Fault(
        "pyramid-plan-tail-by-vectors",
        _LAUNCH,
        "p.whole_vectors &= level.channels % V == 0;",
        "",
        "Rows of weights are read by vectors where a level's channels end amid one.",
    ),
    Fault(
        "pyramid-plan-chunks-of-all",
        _BACKWARD,
        "chunks += ceil_divide(p.level[i].channels, kSize)",
        "chunks = ceil_divide(p.channels, kSize)",
        "Levels that fill no whole chunk take too few tiles.",
    ),
    Fault(
        "pyramid-group-writes-from-the-start",
        _INPUT,
        "image - g.first_image",
        "image",
        "Images of later groups are kept past the end of the workspace.",
    ),
    Fault(
        "pyramid-group-reads-the-first-images",
        _INPUT,
        "image = g.first_image + work.image",
        "image = work.image",
        "Every group is that of the first images.",
    ),
    Fault(
        "pyramid-binding-output-strides",
        _BINDING_BACKWARD,
        "p.output_stride = strides_of(*output);",
        "p.output_stride = g.gradient_stride;",
        "The output is read as the gradient lies.",
    ),
]
