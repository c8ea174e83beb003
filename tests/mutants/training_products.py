"""Faults of training_products: moments in the epilogues of the pyramid's kernels, and the binding."""

from __future__ import annotations

from .faults import Fault

_FOLDER = "separable_pyramid"
_MOMENTS, _TILE = f"{_FOLDER}/product_moments.h", f"{_FOLDER}/tile.h"
_FORWARD, _IO = f"{_FOLDER}/forward.h", f"{_FOLDER}/matrix_io.h"
_BINDING, _CHECKS = f"{_FOLDER}/binding_products.cpp", "binding/checks.h"


def _without(name: str, file: str, old: str, breaks: str, index: int = 0, count: int = 1) -> Fault:
    """A line, or a part of one, that is left out."""
    return Fault(f"products-{name}", file, old, "", breaks, index, count)


def _changed(name: str, file: str, old: str, new: str, breaks: str, index: int = 0, count: int = 1) -> Fault:
    return Fault(f"products-{name}", file, old, new, breaks, index, count)


_GROUPS = [
    _without(
        "no-barrier-before-moments",
        _MOMENTS,
        "  block_barrier();  // nothing reads the operands any more, nor the tile\n",
        "Moments overwrite operands that other threads still read.",
    ),
    _without(
        "no-barrier-before-merging",
        _MOMENTS,
        "  block_barrier();  // all groups are there\n",
        "Groups are merged that are not there yet.",
    ),
    _changed(
        "sums-of-the-first-output", _MOMENTS, "sum[i] += value(m, i);", "sum[i] += value(m, 0);", "One mean serves."
    ),
    _changed(
        "distances-of-the-first-output",
        _MOMENTS,
        "value(m, i) - mean.at[i]",
        "value(m, 0) - mean.at[i]",
        "A vector's outputs are held to the first one's values.",
    ),
    _changed(
        "distances-from-zero",
        _MOMENTS,
        "value(m, i) - mean.at[i]",
        "value(m, i)",
        "A group's spread is that around 0.",
    ),
    _without(
        "sums-of-all-slots",
        _MOMENTS,
        "    if (!inside[m]) continue;\n",
        "Slots without a pixel count.",
        0,
        2,
    ),
    _without(
        "squares-of-all-slots",
        _MOMENTS,
        "    if (!inside[m]) continue;\n",
        "Slots without a pixel add to the spread.",
        1,
        2,
    ),
    _changed(
        "share-of-no-pixels",
        _MOMENTS,
        "const A share = 1 / (count > 0 ? count : A(1));",
        "const A share = 1 / count;",
        "Threads without pixels have a mean that is none.",
    ),
    _without(
        "count-by-every-thread",
        _MOMENTS,
        "if (column == 0) ",
        "Several threads write a group's count.",
    ),
    _changed(
        "squares-of-the-first-group",
        _MOMENTS,
        "store_vector(&groups.squares[group * G::kPitch + column], squares);",
        "store_vector(&groups.squares[column], squares);",
        "All groups write their spread to one place.",
    ),
    _changed(
        "last-group-without-a-mean",
        _MOMENTS,
        "g < G::kGroups; ++g",
        "g < G::kGroups - 1; ++g",
        "The last group's pixels are left out.",
        0,
        2,
    ),
    _changed(
        "last-group-without-a-spread",
        _MOMENTS,
        "g < G::kGroups; ++g",
        "g < G::kGroups - 1; ++g",
        "The last group's spread is left out.",
        1,
        2,
    ),
    _changed(
        "groups-of-one-size",
        _MOMENTS,
        "sum = multiply_add(groups.count[g], groups.mean",
        "sum = multiply_add(groups.count[0], groups.mean",
        "Groups weigh the same, however many pixels they have.",
    ),
    _changed(
        "means-from-zero",
        _MOMENTS,
        "count : A(1)), first)",
        "count : A(1)), A(0))",
        "The first group's mean is not added again.",
    ),
    _changed(
        "mean-of-no-pixels",
        _MOMENTS,
        "1 / (count > 0 ? count : A(1)), first)",
        "1 / count, first)",
        "Tiles without pixels have a mean that is none.",
    ),
    _changed(
        "spread-within-groups-alone",
        _MOMENTS,
        "multiply_add(groups.count[g] * distance, distance, groups.squares[g * G::kPitch + column])",
        "groups.squares[g * G::kPitch + column] + 0 * distance",
        "Groups' means are taken to be the same.",
    ),
    _changed(
        "spread-between-groups-alone",
        _MOMENTS,
        "groups.squares[g * G::kPitch + column]);",
        "A(0));",
        "A group's pixels are taken to be the same.",
    ),
    _without(
        "columns-past-the-blocks",
        _MOMENTS,
        "column >= G::kColumns || ",
        "Threads without an output write moments of the next block's.",
    ),
    _without(
        "outputs-past-the-last",
        _MOMENTS,
        " || output >= p.outputs",
        "Moments are written of outputs that do not exist.",
    ),
    _changed(
        "part-of-the-first-image",
        _MOMENTS,
        "(image * t.parts + tile)",
        "int64_t{tile}",
        "All images write the first one's moments.",
    ),
    _changed(
        "part-of-the-first-tile",
        _MOMENTS,
        "(image * t.parts + tile)",
        "(image * t.parts)",
        "All tiles write the first one's moments.",
    ),
    _without(
        "part-of-the-first-branch",
        _MOMENTS,
        "* p.branches + index;",
        "Branches write each other's moments.",
    ),
    _changed(
        "mean-and-squares-exchanged",
        _MOMENTS,
        "  store(target, all.mean);\n  store(target + p.outputs, all.squares);\n",
        "  store(target, all.squares);\n  store(target + p.outputs, all.mean);\n",
        "The spread stands where the mean belongs.",
    ),
    _changed(
        "squares-beside-the-mean",
        _MOMENTS,
        "store(target + p.outputs, all.squares);",
        "store(target + 1, all.squares);",
        "The spread of an output overwrites the next one's mean.",
    ),
    _without("counts-by-every-image", _MOMENTS, "image != 0 || ", "Every image writes the counts."),
    _without("counts-by-every-output", _MOMENTS, " || output != 0", "Every output's thread writes the counts."),
    _changed("counts-of-own-tiles-alone", _MOMENTS, "s += tiles", "s += t.parts", "Counts of no part are not written."),
    _changed(
        "counts-of-what-is-not-there",
        _MOMENTS,
        "s == tile ? static_cast<int32_t>(all.count) : 0",
        "static_cast<int32_t>(all.count)",
        "Parts that a branch has not count as others do.",
    ),
    _changed(
        "counts-of-the-first-branch",
        _MOMENTS,
        "t.counts + s * p.branches + index",
        "t.counts + s * p.branches",
        "All branches write the first one's counts.",
    ),
    _without("tile-of-classes", _TILE, " / s.classes", "Tiles of several classes are numbered with gaps."),
    _without("tile-of-rows", _TILE, " / s.height", "Tiles are numbered by their first row."),
    _without("tile-of-columns", _TILE, " / s.width", "Tiles are numbered by their first column."),
    _changed(
        "tile-rows-by-columns",
        _TILE,
        "* t.rows + tile.row",
        "* t.columns + tile.row",
        "Tiles of several classes share their numbers.",
    ),
]

_EPILOGUES = [
    _without(
        "fma-moments-of-what-was-not-stored",
        _FORWARD,
        "      if constexpr (kMoments) total[i][j] = widen(result[j / V].at[j % V]);\n",
        "Moments are those of q before it was rounded.",
    ),
    _changed("fma-moments-of-all-slots", _FORWARD, "inside[i] = pixel.inside;", "inside[i] = true;", "Slots count."),
    _changed(
        "fma-groups-in-the-same-banks",
        _FORWARD,
        "kColumns, Vector<A>::kSize>;",
        "kColumns, 0>;",
        "A warp's groups meet in the same banks.",
    ),
    _changed("fma-one-group", _FORWARD, "S::row_group(), S::column(j), inside", "0, S::column(j), inside", "Races."),
    _changed(
        "fma-first-columns-twice",
        _FORWARD,
        "S::row_group(), S::column(j), inside",
        "S::row_group(), S::column(0), inside",
        "A thread's other outputs have no moments.",
    ),
    _changed("fma-first-results-twice", _FORWARD, "total[i][j + v]", "total[i][v]", "Outputs have others' moments."),
    _without(
        "matrix-moments-of-what-was-not-stored",
        _IO,
        "        if constexpr (kMoments) value = widen(result.at[x]);\n",
        "Moments are those of q before it was rounded.",
    ),
    _changed("matrix-moments-of-all-slots", _IO, "inside[m] = pixel.inside;", "inside[m] = true;", "Slots count."),
    _changed(
        "matrix-groups-in-the-same-banks",
        _IO,
        "sizeof(T) == 2 ? 4 : 16>",
        "sizeof(T) == 2 ? 16 : 4>",
        "A warp's groups meet in the same banks.",
    ),
    _without("matrix-groups-of-one-warp", _IO, "warp_row() / kOwnPixels + ", "Two warps write the same groups."),
    _changed(
        "matrix-columns-of-one-warp",
        _IO,
        "column = warp_column() + (v * 4",
        "column = (v * 4",
        "All warps write the first one's outputs.",
    ),
    _changed(
        "matrix-first-results-twice",
        _IO,
        "result_of<T>(sum, m, v, x + j)",
        "result_of<T>(sum, m, v, j)",
        "Half of a vector's outputs have the others' moments.",
    ),
]

_CALLS = [
    _without(
        "terms-of-the-first-image",
        _BINDING,
        "  if (by_image && p.batch > 1) *image_stride = t.stride(0);\n",
        "Every image has the first one's terms.",
    ),
    _changed(
        "terms-of-images-together",
        _BINDING,
        "*image_stride = t.stride(0);",
        "*image_stride = int64_t{p.branches} * p.channels;",
        "Images' terms are taken to lie together.",
    ),
    _changed(
        "shift-is-scale",
        _BINDING,
        'inner_term(shift, p, first, "shift"',
        'inner_term(scale, p, first, "shift"',
        "The scale is added.",
    ),
    _changed(
        "parts-of-the-last-branch",
        _BINDING,
        "t.parts = std::max(t.parts, choose_tiling<kPixels>(static_cast<int>(dilation), p.height, p.width).tiles());",
        "t.parts = choose_tiling<kPixels>(static_cast<int>(dilation), p.height, p.width).tiles();",
        "There is no room for another branch's tiles.",
    ),
    _without(
        "levels-of-any-format",
        _BINDING,
        '  for (size_t i = 0; i < levels.size(); ++i) check_channels_last(levels[i], indexed("levels", i));\n',
        "Levels in other formats are taken.",
    ),
    _without(
        "batch-of-none",
        _BINDING,
        '  STD_TORCH_CHECK(p.batch >= 1, "levels: expected at least one image, got none");\n',
        "Nothing writes the counts of an empty batch.",
    ),
    _without(
        "workspace-below-nothing",
        _BINDING,
        '  STD_TORCH_CHECK(workspace_bytes >= 0, "workspace_bytes: expected 0 or more, got ", workspace_bytes);\n',
        "A negative workspace is taken.",
    ),
    _without(
        "terms-of-any-dtype",
        _BINDING,
        "  check_like(t, like, name, sum_dtype(like));\n",
        "Terms of another dtype are read as if they were of the sums'.",
    ),
    _changed(
        "terms-of-strided-channels",
        _BINDING,
        "(p.channels == 1 || t.stride(d + 1) == 1) && ",
        "",
        "Channels' terms that lie apart are read as if they did not.",
    ),
    _without(
        "terms-of-strided-branches",
        _BINDING,
        " && (p.branches == 1 || t.stride(d) == p.channels)",
        "Branches' terms that lie apart are read as if they did not.",
    ),
    _without(
        "extents-of-one-refused",
        _CHECKS,
        "t.size(d) <= 1 || ",
        "Images are refused for strides that say nothing.",
    ),
]

FAULTS = [*_GROUPS, *_EPILOGUES, *_CALLS]
