"""Faults of separable_pyramid's operands for tensor cores: where they lie, how they are fetched, h by words."""

from __future__ import annotations

from .faults import Fault

_FOLDER = "separable_pyramid"
_OPERAND = f"{_FOLDER}/matrix_operand.h"
_IO = f"{_FOLDER}/matrix_io.h"
_PATCH = f"{_FOLDER}/word_patch.h"
_WORD = "device/word.h"


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
        _IO,
        "first_output + own + n * kRows < p.outputs && ",
        "Weights are read past the last output.",
    ),
    _changed(
        "weights-of-absent-channels",
        _IO,
        "< p.outputs && c < chunk.count;",
        "< p.outputs;",
        "Weights are read past the chunk.",
    ),
    _changed(
        "weights-not-zero-by-vectors",
        _IO,
        "exists ? kVectorBytes : 0);",
        "kVectorBytes);",
        "Channels that do not exist have the first ones' weights.",
    ),
    _changed(
        "weights-not-zero-by-elements",
        _IO,
        "        store(target + v, exists && c + v < chunk.count ? load(source + v) : T{});",
        "        if (exists && c + v < chunk.count) store(target + v, load(source + v));",
        "Weights of channels that do not exist are whatever lay there.",
    ),
    _changed(
        "weights-tail-by-elements",
        _IO,
        "exists && c + v < chunk.count ?",
        "exists ?",
        "The last vector of a chunk reads on past it.",
    ),
    _changed(
        "weights-of-the-first-block",
        _IO,
        "int64_t{first_output + own} * p.channels",
        "int64_t{own} * p.channels",
        "Every block of outputs has the first one's weights.",
    ),
    _changed(
        "weights-of-the-first-chunk",
        _IO,
        ".first + chunk.channel + c;",
        ".first + c;",
        "Every chunk of a level has the first one's weights.",
    ),
    _changed(
        "weights-of-the-first-level",
        _IO,
        "p.level[chunk.level].first + chunk.channel + c;",
        "chunk.channel + c;",
        "Every level has the first one's weights.",
    ),
    _changed(
        "weights-of-the-first-rows",
        _IO,
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

FAULTS = [*_PLACES, *_FETCHES]
