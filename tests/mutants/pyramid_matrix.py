"""Faults of separable_pyramid's kernels for tensor cores: operands, fetches, h by words, pipelines, epilogue."""

from __future__ import annotations

from .faults import Fault

_FOLDER = "separable_pyramid"
_OPERAND, _TERMS, _PATCH = f"{_FOLDER}/matrix_operand.h", f"{_FOLDER}/matrix_io.h", f"{_FOLDER}/word_patch.h"
_SINGLE, _TWO, _WORD = f"{_FOLDER}/mma_forward.h", f"{_FOLDER}/two_pass.h", "device/word.h"


def _without(name: str, file: str, old: str, breaks: str, index: int = 0, count: int = 1) -> Fault:
    """A line, or a part of one, that is left out."""
    return Fault(f"matrix-{name}", file, old, "", breaks, index, count)


def _changed(name: str, file: str, old: str, new: str, breaks: str, index: int = 0, count: int = 1) -> Fault:
    return Fault(f"matrix-{name}", file, old, new, breaks, index, count)


_PLACES = [
    # --- where operands lie; of what is consistent only the counters tell
    _changed(
        "swizzle-of-pairs-alone",
        _OPERAND,
        "return (bits ^ bits >> 1) & 1;",
        "return bits & 0;",
        "The rows that a warp writes at once share banks.",
    ),
    _changed(
        "swizzle-within-pairs-alone",
        _OPERAND,
        """(unit ^ (row / 2 & 3));
}

// The same of other rows and units, for less: of (row + 16·i, unit ^ 2·k), where row has none of i's bits,
JPU_HOST_DEVICE constexpr int moved_place(int place, int i, int k) {
  return (place ^ (parity(i) * kUnits | 2 * k)) + 64 * i;
}
// and of (row + x, unit), where row is a multiple of 4 and x less than that.
JPU_HOST_DEVICE constexpr int place_beside(int place, int x) { return (place ^ (x % 2 * kUnits | x / 2)) +""",
        """unit;
}

JPU_HOST_DEVICE constexpr int moved_place(int place, int i, int k) {
  return (place ^ (parity(i) * kUnits | 2 * k)) + 64 * i;
}
JPU_HOST_DEVICE constexpr int place_beside(int place, int x) { return (place ^ x % 2 * kUnits) +""",
        "The eight rows that ldmatrix reads at once share banks.",
    ),
    _changed(
        "left-depth-stays",
        _OPERAND,
        "moved_place(left_place, i, k)",
        "moved_place(left_place, i, 0)",
        "A chunk's second half of h is its first again.",
    ),
    _changed(
        "right-depth-stays",
        _OPERAND,
        "moved_place(right_place, j, k)",
        "moved_place(right_place, j, 0)",
        "A chunk's second half of the weights is its first again.",
    ),
    _changed(
        "left-rows-stay",
        _OPERAND,
        "moved_place(left_place, i, k)",
        "moved_place(left_place, 0, k)",
        "A warp multiplies its first 16 rows four times.",
    ),
    _changed(
        "right-rows-stay",
        _OPERAND,
        "moved_place(right_place, j, k)",
        "moved_place(right_place, 0, k)",
        "A warp multiplies its first 16 columns four times.",
    ),
    _changed(
        "left-lanes-as-columns",
        _OPERAND,
        "lane % 16, lane / 16)",
        "lane / 2, lane % 2)",
        "The matrices of the left operand are mixed up.",
    ),
    _changed(
        "right-lanes-as-left",
        _OPERAND,
        "lane / 16 * 8 + lane % 8, lane / 8 % 2)",
        "lane % 16, lane / 16)",
        "Registers of the right operand are those of a left one.",
    ),
    _changed(
        "warp-row-of-pairs",
        _OPERAND,
        "warp_index() % 2 * kWarpSide",
        "warp_index() / 4 * kWarpSide",
        "Two warps make the same results, and some results have none.",
    ),
    _changed(
        "warp-column-of-rows",
        _OPERAND,
        "warp_index() / 2 * kWarpSide",
        "warp_index() % 4 * kWarpSide",
        "Two warps make the same results, and some results have none.",
    ),
    _changed(
        "depth-swapped",
        _OPERAND,
        "a[i], b[0], b[1]);",
        "a[i], b[1], b[0]);",
        "Halves of the summed dimension are multiplied crosswise.",
    ),
    _changed(
        "columns-repeated", _OPERAND, "b[2], b[3]);", "b[0], b[1]);", "Eight columns of each sixteen are made twice."
    ),
    _changed(
        "sums-shared",
        _OPERAND,
        "sum[i][2 * j + 1], a[i]",
        "sum[i][2 * j], a[i]",
        "Products of sixteen columns go to eight sums.",
    ),
    _changed(
        "output-rows-dense",
        _OPERAND,
        "+ thread * 2 + within % 2;",
        "+ within % 2 * 4 + thread;",
        "Weights lie where the product's columns are other outputs.",
    ),
    _changed(
        "output-rows-by-vector",
        _OPERAND,
        "(vector * (V / 2) + within / 2) * 8",
        "(within / 2 * (8 / V) + vector) * 8",
        "Weights of the half types lie in the order of float32's.",
    ),
    _without(
        "weights-not-rounded",
        _OPERAND,
        "        JPU_UNROLL for (int v = 0; v < 4; ++v) b[v] = round_tf32(b[v]);\n",
        "float32 weights are truncated to TF32.",
    ),
    # --- words
    _changed(
        "word-low-half-twice",
        _WORD,
        "static_cast<uint16_t>(word >> 16)",
        "static_cast<uint16_t>(word & 0xffff)",
        "The second channel of a word is its first.",
    ),
    _changed(
        "word-high-half-twice",
        _WORD,
        "static_cast<uint16_t>(word & 0xffff)",
        "static_cast<uint16_t>(word >> 16)",
        "The first channel of a word is its second.",
    ),
    _changed(
        "word-narrows-one",
        _WORD,
        "narrow<T>(value[1]).bits) << 16",
        "narrow<T>(value[0]).bits) << 16",
        "h of a word's second channel is its first's.",
    ),
]

_FETCHES = [
    # --- pointwise weights
    _without(
        "weights-of-absent-outputs",
        _TERMS,
        "first_output + own + n * kRows < p.outputs && ",
        "Weights are read past the last output.",
    ),
    _changed(
        "weights-of-absent-channels",
        _TERMS,
        "< p.outputs && c < chunk.count;",
        "< p.outputs;",
        "Weights are read past the chunk.",
    ),
    _changed(
        "weights-not-zero-by-vectors",
        _TERMS,
        "exists ? kVectorBytes : 0);",
        "kVectorBytes);",
        "Channels that do not exist have the first ones' weights.",
    ),
    _changed(
        "weights-not-zero-by-elements",
        _TERMS,
        "        store(target + v, exists && c + v < chunk.count ? load(source + v) : T{});",
        "        if (exists && c + v < chunk.count) store(target + v, load(source + v));",
        "Weights of channels that do not exist are whatever lay there.",
    ),
    _changed(
        "weights-tail-by-elements",
        _TERMS,
        "exists && c + v < chunk.count ?",
        "exists ?",
        "The last vector of a chunk reads on past it.",
    ),
    _changed(
        "weights-of-the-first-block",
        _TERMS,
        "int64_t{first_output + own} * p.channels",
        "int64_t{own} * p.channels",
        "Every block of outputs has the first one's weights.",
    ),
    _changed(
        "weights-of-the-first-chunk",
        _TERMS,
        ".first + chunk.channel + c;",
        ".first + c;",
        "Every chunk of a level has the first one's weights.",
    ),
    _changed(
        "weights-of-the-first-level",
        _TERMS,
        "p.level[chunk.level].first + chunk.channel + c;",
        "chunk.channel + c;",
        "Every level has the first one's weights.",
    ),
    _changed(
        "weights-of-the-first-rows",
        _TERMS,
        "row + int64_t{n * kRows} * p.channels",
        "row",
        "Outputs past the first 64 have these ones' weights.",
    ),
    # --- patches
    _changed(
        "swap-not-placed",
        _PATCH,
        "q % pitch ^ pair_swap(which, row, q % pitch);",
        "q % pitch;",
        "Pixels are read from their neighbours' places.",
    ),
    _changed(
        "swap-not-read",
        _PATCH,
        "(square.swap ^ (r / kSquare ^ x / kSquare)) * kSize",
        "square.swap * 0 * kSize",
        "Pixels are read where none changed places.",
    ),
    _changed(
        "swap-of-the-corner",
        _PATCH,
        "(square.swap ^ (r / kSquare ^ x / kSquare)) * kSize",
        "square.swap * kSize",
        "The halo's last two rows and columns are read as the square's own.",
    ),
    _changed(
        "swap-not-by-class",
        _PATCH,
        "(which ^ row / kSquare ^ column / kSquare) & 1",
        "(0 * which ^ row / kSquare ^ column / kSquare) & 1",
        "Squares of neighbouring classes share banks.",
    ),
    _changed(
        "halo-a-row-low", _PATCH, "which, row - 1, column - 1)", "which, row, column - 1)", "The patch lies too low."
    ),
    _changed(
        "halo-a-column-right",
        _PATCH,
        "which, row - 1, column - 1)",
        "which, row - 1, column)",
        "The patch lies too far right.",
    ),
    _changed(
        "padding-not-zero",
        _PATCH,
        "source, inside ? kVectorBytes : 0);",
        "source, kVectorBytes);",
        "The padding holds the level's first pixel.",
    ),
    _changed(
        "padding-not-zero-by-elements",
        _PATCH,
        "T value{};\n      if (place",
        "T value = load(static_cast<const T*>(level.data));\n      if (place",
        "The padding holds the level's first element.",
    ),
    _changed(
        "patch-units-past-the-chunk",
        _PATCH,
        "if (unit * V < chunk.count) {",
        "{",
        "Channels past the chunk are fetched, past the level too.",
    ),
    _changed(
        "patch-elements-past-the-chunk",
        _PATCH,
        "place != kOutside && c < chunk.count)",
        "place != kOutside)",
        "A word's second channel is read past the level.",
    ),
    _changed(
        "patch-last-word-half",
        _PATCH,
        "const int count = ceil_divide(chunk.count, W) * W;",
        "const int count = chunk.count;",
        "The last word's second channel is whatever lay there.",
    ),
    _changed(
        "patch-across-what-lies-together",
        _PATCH,
        "channels_inside = stride.c < stride.w;",
        "channels_inside = stride.c > stride.w;",
        "Consecutive threads read elements that lie far apart.",
    ),
    _changed(
        "patch-of-the-first-image",
        _PATCH,
        "at<T>(level.data, stride, image, chunk.channel,",
        "at<T>(level.data, stride, 0, chunk.channel,",
        "Every image is the first one.",
    ),
    _changed(
        "patch-of-the-first-chunk",
        _PATCH,
        "at<T>(level.data, stride, image, chunk.channel,",
        "at<T>(level.data, stride, image, 0,",
        "Every chunk of a level is its first.",
    ),
    _changed(
        "taps-of-the-first-chunk",
        _PATCH,
        "(branch.depthwise) + 9 * int64_t{first}",
        "(branch.depthwise) + 9 * int64_t{level.first}",
        "Every chunk of a level has the first one's taps.",
    ),
    _changed(
        "row-not-filled-up",
        _PATCH,
        "i < count ? load(global + i) : T{});",
        "load(global + i));",
        "Taps and terms are read past the last channel.",
    ),
    _changed(
        "scale-of-the-first-image",
        _PATCH,
        "image * image_stride + int64_t{index}",
        "0 * image_stride + int64_t{index}",
        "Every image has the first one's terms.",
    ),
    _changed(
        "scale-of-the-first-branch",
        _PATCH,
        " + int64_t{index} * p.channels + first;",
        " + first;",
        "Every branch has the first one's terms.",
    ),
    _changed(
        "scale-of-the-first-chunk",
        _PATCH,
        " + int64_t{index} * p.channels + first;",
        " + int64_t{index} * p.channels;",
        "Every chunk has the first one's terms.",
    ),
    # --- h
    _changed(
        "absent-channels-made",
        _PATCH,
        "if (square.word * W >= count) {",
        "if (false) {",
        "h of words past the chunk is made of whatever lies there.",
    ),
    _changed(
        "absent-word-made",
        _PATCH,
        "if (square.word * W >= count) {",
        "if (square.word * W > count) {",
        "h of the word past the chunk is made of whatever lies there.",
    ),
    _changed(
        "taps-by-columns",
        _PATCH,
        "weight[i % 9][i / 9] = flat[i];",
        "weight[i % 3 * 3 + i % 9 / 3][i / 9] = flat[i];",
        "Taps are taken column by column.",
    ),
    _changed(
        "taps-of-words-apart",
        _PATCH,
        "weight[i % 9][i / 9] = flat[i];",
        "weight[i / W][i % W] = flat[i];",
        "Taps of two channels are taken alternately.",
    ),
    _changed(
        "taps-of-the-word-before",
        _PATCH,
        "(square.word * 9 + i) * W",
        "(square.word + i) * W",
        "Taps of other channels are taken.",
    ),
    _changed(
        "taps-backwards",
        _PATCH,
        "multiply_add(weight[3 * i + j][c], row[x + j][c], sum",
        "multiply_add(weight[3 * i + 2 - j][c], row[x + 2 - j][c], sum",
        "A row's taps are summed from the right, which rounds otherwise.",
    ),
    _changed(
        "tap-mirrored",
        _PATCH,
        "row[x + j][c], sum",
        "row[x + 2 - j][c], sum",
        "A row's taps meet its pixels the wrong way round.",
    ),
    _changed("tap-row-missing", _PATCH, "if (i < 0 || i > 2)", "if (i < 0 || i > 1)", "The third row takes no part."),
    _changed(
        "scale-of-a-words-first",
        _PATCH,
        "inputs.scale[square.word * W + c]",
        "inputs.scale[square.word * W]",
        "Both channels of a word have the first one's scale.",
    ),
    _changed(
        "shift-of-a-words-first",
        _PATCH,
        "inputs.shift[square.word * W + c]",
        "inputs.shift[square.word * W]",
        "Both channels of a word have the first one's shift.",
    ),
    _without(
        "operand-not-rounded",
        _PATCH,
        "        if constexpr (W == 1) h[c] = round_tf32(h[c]);\n",
        "float32's h is truncated to TF32.",
    ),
    _changed(
        "square-without-class",
        _PATCH,
        "(which * (shape.height + 2) + row) * word_patch_pitch",
        "(which * shape.height + row) * word_patch_pitch",
        "The windows of all classes but the first lie too high.",
    ),
    _changed(
        "slot-without-class",
        _PATCH,
        "(which * shape.height + row) * shape.width + column",
        "row * shape.width + column",
        "All classes' h go to the first one's slots.",
    ),
]

_EPILOGUE = [
    _changed(
        "out-scale-of-the-first-branch",
        _TERMS,
        "const int64_t term = int64_t{index} * p.outputs + output;",
        "const int64_t term = output;",
        "Every branch has the first one's out_scale and out_shift.",
    ),
    _changed(
        "out-scale-past-the-last",
        _TERMS,
        "scale[v][x] = output < p.outputs ? affine_term<float>(p.outer.scale, term, 1) : 0;",
        "scale[v][x] = affine_term<float>(p.outer.scale, term, 1);",
        "out_scale is read past the last output.",
    ),
    _changed(
        "out-shift-past-the-last",
        _TERMS,
        "shift[v][x] = output < p.outputs ? affine_term<float>(p.outer.shift, term, 0) : 0;",
        "shift[v][x] = affine_term<float>(p.outer.shift, term, 0);",
        "out_shift is read past the last output.",
    ),
    _changed(
        "out-shift-is-scale",
        _TERMS,
        "affine_term<float>(p.outer.shift, term, 0)",
        "affine_term<float>(p.outer.scale, term, 0)",
        "The scale is added too.",
    ),
    _changed(
        "no-out-scale-is-zero",
        _TERMS,
        "affine_term<float>(p.outer.scale, term, 1)",
        "affine_term<float>(p.outer.scale, term, 0)",
        "Without out_scale there is nothing.",
    ),
    _changed(
        "output-of-the-first-branch",
        _TERMS,
        "image, int64_t{index} * p.outputs + first,",
        "image, first,",
        "Every branch writes the first one's channels.",
    ),
    _changed("output-rows-dense-too", _TERMS, "row + m * 8)", "row + m)", "Rows of sums go to wrong pixels."),
    _changed(
        "output-column-of-threads",
        _TERMS,
        "lane_index() % 4 * V;",
        "lane_index() % 4 * 2;",
        "Threads write each other's columns.",
    ),
    _without("output-outside", _TERMS, "    if (!pixel.inside) continue;\n", "Slots without a pixel write some other."),
    _changed(
        "output-rows-by-columns",
        _TERMS,
        "[m % 2 * 2 + x % 2]",
        "[x % 2 * 2 + m % 2]",
        "Rows and columns of a thread's results are exchanged.",
    ),
    _changed(
        "output-vectors-mixed",
        _TERMS,
        "[v * (V / 2) + x / 2]",
        "[x / 2 * kVectors + v]",
        "Vectors of outputs hold each other's results.",
    ),
    _changed(
        "relu-spoils-nan",
        _TERMS,
        "if (p.relu && value < 0) value = 0;",
        "if (p.relu && !(value > 0)) value = 0;",
        "NaN becomes 0.",
    ),
    _changed("relu-always", _TERMS, "if (p.relu && value < 0)", "if (value < 0)", "ReLU where none was asked for."),
    _without("vectors-past-the-last-output", _TERMS, "if (exist > 0) ", "Vectors go to the next branch's channels."),
    _without("elements-past-the-last-output", _TERMS, "if (x < exist) ", "Elements go to the next branch's channels."),
    _changed(
        "elements-as-if-together",
        _TERMS,
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

FAULTS = [*_PLACES, *_FETCHES, *_EPILOGUE, *_SINGLE_LAUNCH, *_TWO_PASS]
