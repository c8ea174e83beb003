"""Faults of separable_pyramid's kernels for tensor cores: both pipelines, and the epilogue."""

from __future__ import annotations

from .faults import Fault

_FOLDER = "separable_pyramid"
_IO = f"{_FOLDER}/matrix_io.h"
_SINGLE = f"{_FOLDER}/mma_forward.h"
_TWO = f"{_FOLDER}/two_pass.h"


def _without(name: str, file: str, old: str, breaks: str, index: int = 0, count: int = 1) -> Fault:
    """A line, or a part of one, that is left out."""
    return Fault(f"matrix-{name}", file, old, "", breaks, index, count)


def _changed(name: str, file: str, old: str, new: str, breaks: str, index: int = 0, count: int = 1) -> Fault:
    return Fault(f"matrix-{name}", file, old, new, breaks, index, count)


_EPILOGUE = [
    _changed(
        "out-scale-of-the-first-branch",
        _IO,
        "const int64_t term = int64_t{index} * p.outputs + output;",
        "const int64_t term = output;",
        "Every branch has the first one's out_scale and out_shift.",
    ),
    _changed(
        "out-scale-past-the-last",
        _IO,
        "scale[v][x] = output < p.outputs ? affine_term<float>(p.outer.scale, term, 1) : 0;",
        "scale[v][x] = affine_term<float>(p.outer.scale, term, 1);",
        "out_scale is read past the last output.",
    ),
    _changed(
        "out-shift-past-the-last",
        _IO,
        "shift[v][x] = output < p.outputs ? affine_term<float>(p.outer.shift, term, 0) : 0;",
        "shift[v][x] = affine_term<float>(p.outer.shift, term, 0);",
        "out_shift is read past the last output.",
    ),
    _changed(
        "out-shift-is-scale",
        _IO,
        "affine_term<float>(p.outer.shift, term, 0)",
        "affine_term<float>(p.outer.scale, term, 0)",
        "The scale is added too.",
    ),
    _changed(
        "no-out-scale-is-zero",
        _IO,
        "affine_term<float>(p.outer.scale, term, 1)",
        "affine_term<float>(p.outer.scale, term, 0)",
        "Without out_scale there is nothing.",
    ),
    _changed(
        "output-of-the-first-branch",
        _IO,
        "image, int64_t{index} * p.outputs + first,",
        "image, first,",
        "Every branch writes the first one's channels.",
    ),
    _changed("output-rows-dense-too", _IO, "row + m * 8)", "row + m)", "Rows of sums go to wrong pixels."),
    _changed(
        "output-column-of-threads",
        _IO,
        "lane_index() % 4 * V;",
        "lane_index() % 4 * 2;",
        "Threads write each other's columns.",
    ),
    _without("output-outside", _IO, "    if (!pixel.inside) continue;\n", "Slots without a pixel write some other."),
    _changed(
        "output-rows-by-columns",
        _IO,
        "[m % 2 * 2 + x % 2]",
        "[x % 2 * 2 + m % 2]",
        "Rows and columns of a thread's results are exchanged.",
    ),
    _changed(
        "output-vectors-mixed",
        _IO,
        "[v * (Vector<T>::kSize / 2) + x / 2]",
        "[x / 2 * (kWarpSide / 4 / Vector<T>::kSize) + v]",
        "Vectors of outputs hold each other's results.",
    ),
    _changed(
        "relu-spoils-nan",
        _IO,
        "if (p.relu && value < 0) value = 0;",
        "if (p.relu && !(value > 0)) value = 0;",
        "NaN becomes 0.",
    ),
    _changed("relu-always", _IO, "if (p.relu && value < 0)", "if (value < 0)", "ReLU where none was asked for."),
    _without("vectors-past-the-last-output", _IO, "if (exist > 0) ", "Vectors go to the next branch's channels."),
    _without("elements-past-the-last-output", _IO, "if (x < exist) ", "Elements go to the next branch's channels."),
    _changed(
        "elements-as-if-together",
        _IO,
        "(column + x) * p.output_stride.c",
        "(column + x)",
        "Channels are written as if they lay together.",
    ),
]

_SINGLE_LAUNCH = [
    _changed(
        "single-no-barrier-after-placing",
        _SINGLE,
        "  block_barrier();\n  Chunk ready",
        "  Chunk ready",
        "Copies look up places that are not there.",
    ),
    _without(
        "single-no-barrier",
        _SINGLE,
        "    block_barrier();  // what step k - 1 fetched and made is there, and what it read is free\n",
        "Stages are read while others write them.",
    ),
    _without("single-no-wait", _SINGLE, "    wait_copies<0>();\n", "Stages are read before they are copied."),
    _changed(
        "single-no-first-commit",
        _SINGLE,
        "  commit_copies();\n  Chunk next",
        "  Chunk next",
        "The first chunk's inputs belong to no group that is waited for.",
    ),
    _changed(
        "single-no-commit",
        _SINGLE,
        "    commit_copies();\n    // Half",
        "    // Half",
        "Copies belong to no group that is waited for.",
    ),
    _changed(
        "single-inputs-fetched-over",
        _SINGLE,
        "shared.inputs[k & 1]);",
        "shared.inputs[(k + 1) & 1]);",
        "Inputs are overwritten while h is made of them.",
    ),
    _changed(
        "single-weights-fetched-over",
        _SINGLE,
        "shared.pointwise[(k + 1) & 1]);",
        "shared.pointwise[k & 1]);",
        "Weights are overwritten while they are multiplied.",
    ),
    _changed(
        "single-h-made-over",
        _SINGLE,
        "shared.normalised[turn];",
        "shared.normalised[k & 1];",
        "h is overwritten while it is multiplied.",
    ),
    _changed(
        "single-inputs-of-one-stage",
        _SINGLE,
        "shared.inputs[turn], ready.count",
        "shared.inputs[0], ready.count",
        "h of every second chunk is made of the inputs under way.",
    ),
    _changed(
        "single-multiplies-the-next-h",
        _SINGLE,
        "multiply(shared.normalised[k & 1],",
        "multiply(shared.normalised[turn],",
        "h is multiplied while it is made.",
    ),
    _changed(
        "single-multiplies-the-next-weights",
        _SINGLE,
        "shared.pointwise[k & 1], sum)",
        "shared.pointwise[turn], sum)",
        "Weights are multiplied while they are fetched.",
    ),
    _changed(
        "single-multiplies-nothing-first",
        _SINGLE,
        "if (k >= 0) multiply",
        "multiply",
        "What no step has made is multiplied.",
    ),
    _changed(
        "single-weights-of-the-next",
        _SINGLE,
        "fetch_pointwise(p, branch, first_output, ready,",
        "fetch_pointwise(p, branch, first_output, next,",
        "Every chunk has the next one's weights.",
    ),
    _changed(
        "single-first-outputs",
        _SINGLE,
        "work.share * kMatrixColumns",
        "work.share * kColumns",
        "Blocks of outputs overlap.",
    ),
    _changed(
        "single-columns-not-placed",
        _SINGLE,
        "place_beside(place, x)",
        "place_beside(place, 0)",
        "h of a square's row goes to its first slot.",
    ),
    _changed(
        "single-words-not-placed",
        _SINGLE,
        "square.word % 4 * kWordSize<T>",
        "square.word / 4 * kWordSize<T>",
        "Words of a vector go to one place.",
    ),
]

_TWO_PASS = [
    _changed(
        "normalise-no-barrier-after-placing",
        _TWO,
        "  block_barrier();\n  const Square",
        "  const Square",
        "Copies look up places that are not there.",
    ),
    _without(
        "normalise-no-barrier",
        _TWO,
        "    block_barrier();  // chunk k is there, and what chunk k - 1 was made of is free\n",
        "Inputs are read while others copy them.",
    ),
    _without("normalise-no-wait", _TWO, "    wait_copies<0>();\n", "Inputs are read before they are copied."),
    _changed(
        "normalise-no-first-commit",
        _TWO,
        "  commit_copies();\n  for (int k = begin",
        "  for (int k = begin",
        "The first chunk's inputs belong to no group that is waited for.",
    ),
    _without("normalise-no-commit", _TWO, "      commit_copies();\n", "Copies belong to no group that is waited for."),
    _changed(
        "normalise-inputs-fetched-over",
        _TWO,
        "shared.inputs[(k + 1) & 1]);",
        "shared.inputs[k & 1]);",
        "Inputs are overwritten while h is made of them.",
    ),
    _changed(
        "normalise-inputs-of-one-stage",
        _TWO,
        "shared.inputs[k & 1], chunk.count",
        "shared.inputs[0], chunk.count",
        "h of every second chunk is made of the inputs under way.",
    ),
    _changed(
        "normalise-past-the-last-chunk",
        _TWO,
        "smaller(begin + kSplitChunks, t.chunks)",
        "begin + kSplitChunks",
        "Chunks past the last are written over the next slots.",
    ),
    _changed(
        "normalise-splits-overlap",
        _TWO,
        "block_index() % t.splits) * kSplitChunks",
        "block_index() % t.splits) * 4",
        "Blocks make the same chunks.",
    ),
    _changed(
        "normalise-of-the-first-chunks",
        _TWO,
        "nth_chunk<kSize>(p, begin)",
        "chunk_at<kSize>(p, 0, 0)",
        "Every split makes the first one's chunks.",
    ),
    _changed(
        "normalise-fetches-past-the-split",
        _TWO,
        "if (k + 1 < end) {",
        "if (next.count > 0) {",
        "Each block fetches a chunk that it does not make.",
    ),
    _changed(
        "normalise-the-first-tiles",
        _TWO,
        "work_of(t.first_tile + tile,",
        "work_of(tile,",
        "Every round makes the first tiles' h.",
        0,
        2,
    ),
    _changed(
        "normalise-columns-overlap",
        _TWO,
        "(y * shape.width + x) * pitch",
        "(y * kSquare + x) * pitch",
        "Squares are written as if they were the whole tile.",
    ),
    _changed(
        "normalise-words-overlap",
        _TWO,
        "square.word * kWordSize<T>;",
        "square.word;",
        "Words of the half types overlap.",
    ),
    _without(
        "product-no-barrier",
        _TWO,
        "    block_barrier();  // chunk k is there, and that of chunk k - 1 is free\n",
        "Stages are read while others copy them.",
    ),
    _without(
        "product-no-wait", _TWO, "    wait_copies<kProductStages - 2>();\n", "Stages are read before they are copied."
    ),
    _changed(
        "product-waits-for-too-few",
        _TWO,
        "wait_copies<kProductStages - 2>();",
        "wait_copies<kProductStages - 1>();",
        "The stage that is multiplied may still be under way.",
    ),
    _changed(
        "product-no-commit",
        _TWO,
        "  }\n  commit_copies();\n}",
        "  }\n}",
        "Copies belong to no group that is waited for.",
    ),
    _changed(
        "product-no-empty-groups",
        _TWO,
        "  }\n  commit_copies();\n}",
        "    commit_copies();\n  }\n}",
        "Past the last fetch, groups that are waited for are too old.",
    ),
    _changed(
        "product-fetches-past-the-last",
        _TWO,
        "  if (chunk.count > 0) {",
        "  {",
        "h is read past its last chunk.",
    ),
    _changed(
        "product-h-fetched-over",
        _TWO,
        "operand = shared.normalised[k % kProductStages];",
        "operand = shared.normalised[(k + 1) % kProductStages];",
        "h is overwritten while it is multiplied.",
    ),
    _changed(
        "product-weights-fetched-over",
        _TWO,
        "chunk, shared.pointwise[k % kProductStages]);",
        "chunk, shared.pointwise[(k + 1) % kProductStages]);",
        "Weights are overwritten while they are multiplied.",
    ),
    _changed(
        "product-h-of-another-stage",
        _TWO,
        "multiply(shared.normalised[k % kProductStages],",
        "multiply(shared.normalised[k & 1],",
        "h of other chunks is multiplied.",
    ),
    _changed(
        "product-weights-of-another-stage",
        _TWO,
        "shared.pointwise[k % kProductStages], sum);",
        "shared.pointwise[k & 1], sum);",
        "Weights of other chunks are multiplied.",
    ),
    _changed(
        "product-prologue-one-short",
        _TWO,
        "k < kProductStages - 1; ++k",
        "k < kProductStages - 2; ++k",
        "One stage is never fetched.",
    ),
    _changed(
        "product-fetches-the-wrong-chunk",
        _TWO,
        "first_output, k + kProductStages - 1, next",
        "first_output, k + kProductStages - 2, next",
        "Chunks are fetched to the stage before theirs.",
    ),
    _changed(
        "product-units-beside",
        _TWO,
        "unit_place(slot, unit))",
        "unit_place(slot, unit ^ 1))",
        "Neighbouring channels of h are exchanged.",
    ),
    _changed(
        "product-first-outputs",
        _TWO,
        "p.output_tiles) * kMatrixColumns;",
        "p.output_tiles) * kColumns;",
        "Blocks of outputs overlap.",
    ),
    _changed(
        "product-the-first-tiles",
        _TWO,
        "work_of(t.first_tile + tile,",
        "work_of(tile,",
        "Every round's results go to the first tiles.",
        1,
        2,
    ),
]


FAULTS = [*_EPILOGUE, *_SINGLE_LAUNCH, *_TWO_PASS]
