"""Faults of training's depthwise launches: how they walk over tiles, what they sum, their plans and their binding."""

from __future__ import annotations

from .faults import Fault

_FOLDER = "separable_pyramid"
_STRIPS, _MOMENTS, _NORMALISED = f"{_FOLDER}/strips.h", f"{_FOLDER}/moments.h", f"{_FOLDER}/normalised.h"
_GRADIENT = f"{_FOLDER}/depthwise_gradient.h"
_LAUNCH, _BINDING = f"{_FOLDER}/launch_training.h", f"{_FOLDER}/binding_training.cpp"


def _changed(name: str, file: str, old: str, new: str, breaks: str) -> Fault:
    return Fault(f"depthwise-{name}", file, old, new, breaks)


_WALK = [
    _changed(
        "walk-first-places",
        _STRIPS,
        "  block_barrier();\n  fetch(0);",
        "  fetch(0);",
        "The first patch is fetched from places that are not there yet.",
    ),
    _changed(
        "walk-no-barrier",
        _STRIPS,
        "    block_barrier();  // the tile's patch",
        "    // the tile's patch",
        "A patch is read while others fetch it.",
    ),
    _changed("walk-no-wait", _STRIPS, "    wait_copies<0>();\n", "", "A patch is read before it has arrived."),
    _changed(
        "walk-one-slot",
        _STRIPS,
        "    slot ^= 1;\n",
        "",
        "All tiles have the first one's slot, the next is fetched beside.",
    ),
    _changed(
        "walk-strips-of-the-first-tile",
        _STRIPS,
        "tile_at(branch.tiling, tile + 1), shared.strips",
        "tile_at(branch.tiling, work.begin), shared.strips",
        "Later tiles stand for the pixels of the first.",
    ),
    _changed(
        "walk-places-of-the-second-tile",
        _STRIPS,
        "place(tile + 2, slot);",
        "place(tile + 1, slot);",
        "From the third on, patches are those of the tile before.",
    ),
    _changed(
        "parts-without-their-last-tile",
        _STRIPS,
        "tiles * (part + 1) / t.parts[branch])",
        "(tiles * (part + 1) - 1) / t.parts[branch])",
        "The last tile of all is left out.",
    ),
    _changed(
        "blocks-of-the-first-image",
        _STRIPS,
        "static_cast<int>(rest / parts)",
        "static_cast<int>(rest / parts) * 0",
        "All blocks work on the first image.",
    ),
    _changed(
        "strip-rows-past-the-image",
        _STRIPS,
        "smaller(kRows, ceil_divide(p.height - first.y, dilation))",
        "kRows",
        "Rows below the image count.",
    ),
    _changed(
        "strip-columns-past-the-image",
        _STRIPS,
        "smaller(kRun, ceil_divide(p.width - first.x, dilation))",
        "kRun",
        "Columns beside the image count.",
    ),
    _changed(
        "strip-of-the-first-class",
        _STRIPS,
        "(which * (shape.height + 2) + i)",
        "i",
        "Packed classes are all convolved as the first.",
    ),
    _changed(
        "strip-taps-transposed",
        _STRIPS,
        "taps[3 * i + j], row[x + j], z[y][x]",
        "taps[3 * j + i], row[x + j], z[y][x]",
        "Rows of taps are taken for columns.",
    ),
]

_OF_MOMENTS = [
    _changed(
        "moments-no-barrier",
        _MOMENTS,
        "  block_barrier();\n",
        "",
        "Moments are merged before they are there.",
    ),
    _changed(
        "moments-not-shifted",
        _MOMENTS,
        "shift = value[e * kStrip];",
        "shift = 0;",
        "A mean that is large beside the deviation is rounded with each merge.",
    ),
    _changed(
        "moments-of-other-shifts",
        _MOMENTS,
        "other - shift + free.part",
        "free.part",
        "Threads' means are merged though each differs from another value.",
    ),
    _changed(
        "moments-without-shift",
        _MOMENTS,
        "store(target, shift + total.mean);",
        "store(target, total.mean);",
        "No shift.",
    ),
    _changed(
        "moments-of-one-thread-less",
        _MOMENTS,
        "  for (int group = 0; group < kGroups; ++group) {\n    const int thread",
        "  for (int group = 1; group < kGroups; ++group) {\n    const int thread",
        "The first thread of a channel takes no part.",
    ),
    _changed(
        "moments-count-all-slots",
        _MOMENTS,
        "pixels += rows * columns;",
        "pixels += kStrip;",
        "Slots without a pixel are counted.",
    ),
    _changed(
        "moments-weigh-all-slots",
        _MOMENTS,
        "= i / kRun < rows && i % kRun < columns;",
        "= i / kRun < rows;",
        "Columns beside the image are among the values.",
    ),
    _changed(
        "moments-counts-of-other-branches",
        _MOMENTS,
        "  if (block_index() == 0) write_no_counts(t);\n",
        "",
        "Counts of branches that are not wanted are whatever was there.",
    ),
    _changed(
        "moments-number-among-the-wanted",
        _MOMENTS,
        "const int number = t.number[work.branch];",
        "const int number = work.branch;",
        "Wanted branches write where others' moments are.",
    ),
]

_OF_GRADIENTS = [
    _changed(
        "normalised-by-variance",
        _NORMALISED,
        "kInverseDeviation * step",
        "(kInverseDeviation - 1) * step",
        "The variance is multiplied by.",
    ),
    _changed(
        "normalised-of-the-first-set",
        _NORMALISED,
        "work.image * t.statistics_image",
        "0 * t.statistics_image",
        "All images have the first one's statistics.",
    ),
    _changed(
        "normalised-in-one-rounding-more",
        _NORMALISED,
        "(z[y][x] - mean) * inverse_deviation",
        "z[y][x] * inverse_deviation - mean * inverse_deviation",
        "What a large mean is rounded to swallows the rest.",
    ),
    _changed(
        "gradient-no-barrier",
        _GRADIENT,
        "  block_barrier();\n  const int count",
        "  const int count",
        "Terms are added before they are there.",
    ),
    _changed(
        "terms-no-barrier",
        _GRADIENT,
        "  block_barrier();\n  const int channels",
        "  const int channels",
        "Rows of terms are added before they are there.",
    ),
    _changed(
        "gradient-adds-mean",
        _GRADIENT,
        "multiply_add(c.k, gradient, -c.a)",
        "multiply_add(c.k, gradient, c.a)",
        "a is added.",
    ),
    _changed(
        "gradient-of-infinities",
        _GRADIENT,
        "c.b == 0 ? rest : multiply_add(",
        "multiply_add(",
        "Infinite z of fixed statistics make NaN.",
    ),
    _changed(
        "gradient-of-the-first-set",
        _GRADIENT,
        "image * t.coefficients_image",
        "0 * t.coefficients_image",
        "All images have the first one's coefficients.",
    ),
    _changed(
        "gradient-not-rounded",
        _GRADIENT,
        "dz[half + i][x] = widen(rounded);",
        "dz[half + i][x] = A(1.002f) * widen(rounded);",
        "Weights have the gradient of another dz than is stored.",
    ),
    _changed(
        "gradient-where-no-pixel-is",
        _GRADIENT,
        "        if (x >= columns) continue;\n",
        "",
        "An infinity beside a slot without a pixel counts.",
    ),
    _changed(
        "gradient-where-no-row-is",
        _GRADIENT,
        "      if (y >= rows) continue;\n",
        "",
        "An infinity above a slot without a pixel counts.",
    ),
    _changed(
        "gradient-of-the-last-tile",
        _GRADIENT,
        "total[i] += terms[i];",
        "total[i] = terms[i];",
        "Earlier tiles of a part are forgotten.",
    ),
    _changed(
        "terms-of-the-first-image",
        _GRADIENT,
        "int64_t{p.batch} * t.parts[index];",
        "int64_t{1} * t.parts[index];",
        "Only the first image's parts are added up.",
    ),
    _changed(
        "rows-past-the-image",
        _GRADIENT,
        "* (kThreads / kRowLanes) < pixels; };",
        "* (kThreads / kRowLanes) < pixels + 1; };",
        "A row of the next image is written too.",
    ),
    _changed(
        "rows-past-the-channels",
        _GRADIENT,
        "  if (channel >= p.channels) return;\n",
        "",
        "Lanes behind the last channel write the next pixel.",
    ),
]

_PLAN = [
    _changed(
        "plan-one-part-too-few",
        _LAUNCH,
        "blocks += t.parts[i];",
        "blocks += t.parts[i] - (i + 1 < p.branches && t.parts[i] > 1);",
        "A branch's last part is taken for the next one's first.",
    ),
    _changed(
        "plan-tiny-parts",
        _LAUNCH,
        "(branch.tiling.tiles() + kLeastTiles - 1) / kLeastTiles",
        "branch.tiling.tiles()",
        "Blocks have one tile each, whose fetch nothing hides.",
    ),
    _changed(
        "plan-vectors-of-any-channels",
        _LAUNCH,
        "level.channels % V == 0 && channels_in_vectors",
        "channels_in_vectors",
        "Vectors go beyond a level's last channel.",
    ),
    _changed(
        "plan-rows-always-in-vectors",
        _LAUNCH,
        "p.channels % V == 0 && aligned(t.normalised)",
        "aligned(t.normalised)",
        "Vectors begin where rows of odd channels do.",
    ),
    _changed(
        "binding-group-from-the-first",
        _BINDING,
        "for (int64_t i = first; i < first + branches; ++i) wanted[i]",
        "for (int64_t i = 0; i < branches; ++i) wanted[i]",
        "A group is always the first branches.",
    ),
    _changed(
        "binding-absent-levels-last",
        _BINDING,
        "    first += channels[i];\n",
        "    if (gradients[i].has_value()) first += channels[i];\n",
        "Levels without a gradient take no place among the channels.",
    ),
    _changed(
        "binding-any-coefficients",
        _BINDING,
        "  check_contiguous(sets, {count, arrays, branches, p.channels}, name);\n",
        "",
        "Statistics of fewer channels are read beyond their end.",
    ),
    _changed(
        "binding-any-gradient",
        _BINDING,
        '  check_like(gradient, like, "gradient", dtype);\n',
        "",
        "A gradient of another dtype is overwritten as if it were of the levels'.",
    ),
    _changed(
        "binding-other-channels",
        _BINDING,
        "total == dz.size(2)",
        "true",
        "Gradients of other channels than dz has are taken for its.",
    ),
]

FAULTS = [*_WALK, *_OF_MOMENTS, *_OF_GRADIENTS, *_PLAN]
