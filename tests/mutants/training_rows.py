"""Faults of training's kernels of rows: terms, output, sums, gradient, their plan and their binding."""

from __future__ import annotations

from .faults import Fault

_FOLDER = "norm_relu"
_TERMS, _OUTPUT, _SUMS = f"{_FOLDER}/row_terms.h", f"{_FOLDER}/output.h", f"{_FOLDER}/output_sums.h"
_GRADIENT, _LAUNCH = f"{_FOLDER}/output_gradient.h", f"{_FOLDER}/launch_rows.h"
_CONFIG, _BINDING = f"{_FOLDER}/rows_config.h", f"{_FOLDER}/binding_rows.cpp"

_OF_TERMS = [
    Fault(
        "rows-lanes-past-the-end",
        _TERMS,
        "channel < p.channels && row < p.rows",
        "row < p.rows",
        "Lanes behind the last channel take part.",
    ),
    Fault(
        "rows-rows-past-the-end",
        _TERMS,
        "channel < p.channels && row < p.rows",
        "channel < p.channels",
        "Threads that fill no row take part in the next round's.",
    ),
    Fault(
        "rows-first-channels",
        _TERMS,
        "int64_t{block_index() % tiles} * p.lanes + lane",
        "int64_t{lane}",
        "All tiles have the first one's channels.",
    ),
    Fault("rows-own-floors", _TERMS, "pixels + rows - 1)", "pixels)", "The last pixels are left out."),
    Fault(
        "rows-own-without-end",
        _TERMS,
        "left < reach ? left : reach",
        "left",
        "A block goes on where the next begins.",
    ),
    Fault(
        "rows-own-past-the-end",
        _TERMS,
        "left < reach ? left : reach",
        "reach",
        "The last block goes on behind the last pixel.",
    ),
    Fault(
        "rows-second-half-of-terms",
        _TERMS,
        "load_vector(address + v)",
        "load_vector(address)",
        "A vector of halves has the first four terms twice.",
    ),
    Fault(
        "rows-unpack-one-of-a-word",
        _TERMS,
        "value[i * kSize + k] = pair[k]",
        "value[i * kSize + k] = pair[0]",
        "Both halves of a word are the first.",
    ),
    Fault(
        "rows-pack-one-of-a-word",
        _TERMS,
        "pair[k] = value[i * kSize + k]",
        "pair[k] = value[i * kSize]",
        "Both halves of a word become the first.",
    ),
    Fault(
        "rows-relu-before-rounding",
        _TERMS,
        "<= kRoundsToZero<T>",
        "<= 0",
        "An output that was rounded to 0 lets gradients through.",
    ),
    Fault("rows-relu-passes-zeros", _TERMS, "<= kRoundsToZero<T>", "< kRoundsToZero<T>", "0 lets gradients through."),
    Fault(
        "rows-relu-stops-nan",
        _TERMS,
        "<= kRoundsToZero<T> ? A(0) : gradient",
        "> kRoundsToZero<T> ? gradient : A(0)",
        "NaN stops gradients.",
    ),
    Fault("rows-relu-float16", _TERMS, "0x1p-25f", "0x1p-24f", "The smallest output of float16 stops gradients."),
    Fault("rows-relu-bfloat16", _TERMS, "0x1p-134f", "0x1p-135f", "A rounded 0 of bfloat16 lets gradients through."),
]

_OF_OUTPUT = [
    Fault(
        "rows-output-first-image",
        _OUTPUT,
        "const int64_t set = place.rest / p.pixel_tiles;",
        "const int64_t set = 0;",
        "All blocks serve the first image.",
    ),
    Fault("rows-output-first-row", _OUTPUT, " * tile + place.row;", " * tile;", "All rows of a tile are its first."),
    Fault(
        "rows-output-first-tile",
        _OUTPUT,
        "int64_t{place.rest % p.pixel_tiles} * tile + place.row",
        "int64_t{place.row}",
        "All tiles are the first.",
    ),
    Fault(
        "rows-output-first-terms",
        _OUTPUT,
        "set * kStatistics * p.pitch + place.channel",
        "place.channel",
        "All images have the first one's norm.",
    ),
    Fault("rows-output-shift", _OUTPUT, "int64_t{kShift}", "int64_t{kMean}", "The mean is added."),
    Fault("rows-output-scale", _OUTPUT, "int64_t{kScale}", "int64_t{kInverseDeviation}", "Weights are left out."),
    Fault("rows-output-loads", _OUTPUT, "if (i + j < own) x[j]", "x[j]", "Loads have no end."),
    Fault("rows-output-stores", _OUTPUT, "if (i + j < own) store_pack", "store_pack", "Stores have no end."),
    Fault(
        "rows-output-step",
        _OUTPUT,
        "const int64_t step = int64_t{p.rows} * p.pitch;",
        "const int64_t step = p.pitch;",
        "A thread goes on to the next row's pixels.",
    ),
    Fault("rows-output-reads-in-place", _OUTPUT, "    q += kOutputPixels * step;\n", "", "Every round is the first."),
    Fault("rows-output-writes-in-place", _OUTPUT, "    out += kOutputPixels * step;\n", "", "Rounds overwrite."),
    Fault("rows-output-steps", _OUTPUT, "norm_relu_pack<1>", "norm_relu_pack<0>", "Vectors have one channel's terms."),
]

_OF_SUMS = [
    Fault("rows-sums-no-barrier", _SUMS, "  block_barrier();\n", "", "Sums are read before they are there."),
    Fault(
        "rows-sums-no-relu",
        _SUMS,
        "behind_relu<T>(g_of[v], q_of[v], scale[v], shift[v])",
        "g_of[v]",
        "All of the gradient passes.",
    ),
    Fault(
        "rows-sums-uncentred",
        _SUMS,
        "(q_of[v] - mean[v]) * rstd[v]",
        "multiply_add(q_of[v], rstd[v], -mean[v] * rstd[v])",
        "What exceeds the deviation is lost.",
    ),
    Fault("rows-sums-mean", _SUMS, "int64_t{kMean}", "int64_t{kVariance}", "The variance is taken for the mean."),
    Fault("rows-sums-rstd", _SUMS, "int64_t{kInverseDeviation}", "int64_t{kScale}", "ŷ has a weight."),
    Fault("rows-sums-third-is-first", _SUMS, "+= normalised;", "+= passed;", "Σ g stands for Σ ŷ."),
    Fault(
        "rows-sums-second-unmasked",
        _SUMS,
        "multiply_add(passed, normalised, sum[1][v])",
        "multiply_add(g_of[v], normalised, sum[1][v])",
        "Σ g·ŷ has what the ReLU stops.",
    ),
    Fault(
        "rows-sums-last-run",
        _SUMS,
        "slot = i == 0 ? sum[s][v] : slot + sum[s][v];",
        "slot = sum[s][v];",
        "The last run is all that is left.",
    ),
    Fault(
        "rows-sums-onto-nothing",
        _SUMS,
        "slot = i == 0 ? sum[s][v] : slot + sum[s][v];",
        "slot = slot + sum[s][v];",
        "The first run is added to what was never written.",
    ),
    Fault("rows-sums-without-last-run", _SUMS, "while (i < own)", "while (i + kRun < own)", "A run is left out."),
    Fault("rows-sums-first-terms", _SUMS, "p.sets == 1 ? 0 : image", "0", "All images have the first one's norm."),
    Fault(
        "rows-sums-next-part",
        _SUMS,
        "own_pixels(pixels.count - place.row,",
        "own_pixels(pixels.count,",
        "A thread takes a pixel of the next part.",
    ),
    Fault(
        "rows-sums-first-part",
        _SUMS,
        "p.pixels + pixels.first + place.row",
        "p.pixels + place.row",
        "All parts are an image's first.",
    ),
    Fault(
        "rows-sums-first-row",
        _SUMS,
        "pixels.first + place.row",
        "pixels.first",
        "All rows of threads sum up the first one's pixels.",
    ),
    Fault("rows-sums-loads", _SUMS, "          if (j + k < run_end) {\n", "          {\n", "Loads have no end."),
    Fault(
        "rows-sums-adds-nothing-there",
        _SUMS,
        "          if (j + k >= run_end) break;\n",
        "",
        "Where there is no pixel, zeros are normalised and added.",
    ),
    Fault(
        "rows-sums-gradient-in-place",
        _SUMS,
        "        gradient += kGradientPixels * step;\n",
        "",
        "The gradient's first pixels go with all of q's.",
    ),
    Fault(
        "rows-sums-q-in-place",
        _SUMS,
        "        q += kGradientPixels * step;\n",
        "",
        "Q's first pixels go with all of the gradient's.",
    ),
    Fault(
        "rows-sums-past-the-end",
        _SUMS,
        "    if (first_channel + c >= p.channels) continue;\n",
        "",
        "Sums of lanes behind the last channel are stored.",
    ),
    Fault("rows-sums-banks", _SUMS, "kThreads + 128 / static_cast<int>(sizeof(A)) / V", "kThreads", "Lanes collide."),
    Fault("rows-sums-of-lanes", _SUMS, "run += first[row * lanes];", "run += first[row];", "Lanes are added up."),
    Fault("rows-sums-begin-of-run", _SUMS, "A run = first[begin * lanes];", "A run = first[0];", "Runs begin alike."),
    Fault(
        "rows-sums-skips-runs", _SUMS, "begin += kRun)", "begin += 2 * kRun)", "Every second run of rows is left out."
    ),
    Fault(
        "rows-sums-first-lane", _SUMS, "Slots::kPitch + c / V;", "Slots::kPitch;", "All lanes' sums are the first's."
    ),
    Fault("rows-sums-first-of-vector", _SUMS, "(s * V + c % V)", "(s * V)", "A vector has its first channel's sums."),
    Fault(
        "rows-sums-first-tile",
        _SUMS,
        " * kSums * p.pitch + first_channel;",
        " * kSums * p.pitch;",
        "All tiles of channels leave their sums in the first.",
    ),
]

_OF_GRADIENT = [
    Fault(
        "rows-gradient-first-image",
        _GRADIENT,
        "const int64_t set = place.rest / p.pixel_tiles;",
        "const int64_t set = 0;",
        "All blocks serve the first image.",
    ),
    Fault("rows-gradient-first-row", _GRADIENT, " * tile + place.row;", " * tile;", "All rows are a tile's first."),
    Fault(
        "rows-gradient-first-branch",
        _GRADIENT,
        "p.first + place.channel",
        "place.channel",
        "The first branches are served, whichever are meant.",
    ),
    Fault("rows-gradient-one-branch", _GRADIENT, " * (channel / width);", " * 0;", "All are stored as the first."),
    Fault("rows-gradient-column", _GRADIENT, "channel % width;", "channel;", "Channels count from the first branch."),
    Fault("rows-gradient-pitch", _GRADIENT, "int64_t{p.rows} * p.width", "int64_t{p.rows} * p.pitch", "Gaps are left."),
    Fault(
        "rows-gradient-of-infinity",
        _GRADIENT,
        "b[v] == 0 ? a[v] : multiply_add",
        "multiply_add",
        "Fixed statistics make NaN of infinity.",
    ),
    Fault("rows-gradient-sign", _GRADIENT, "passed, -rest)", "passed, rest)", "What is taken off is added."),
    Fault("rows-gradient-no-relu", _GRADIENT, "(k[v], passed,", "(k[v], g_of[v],", "All of the gradient passes."),
    Fault(
        "rows-gradient-without-one",
        _GRADIENT,
        "multiply_add(b[v], normalised, a[v])",
        "b[v] * normalised",
        "The coefficient a is left out.",
    ),
    Fault(
        "rows-gradient-first-coefficients",
        _GRADIENT,
        "set * kCoefficients * p.pitch + column",
        "column",
        "All images have the first one's coefficients.",
    ),
    Fault(
        "rows-gradient-first-terms",
        _GRADIENT,
        "set * kStatistics * p.pitch + column",
        "column",
        "All images have the first one's norm.",
    ),
    Fault(
        "rows-gradient-b-is-a", _GRADIENT, "int64_t{kOfNormalised}", "int64_t{kOfOne}", "One coefficient is used twice."
    ),
    Fault(
        "rows-gradient-uncentred",
        _GRADIENT,
        "(q_of[v] - mean[v]) * rstd[v]",
        "multiply_add(q_of[v], rstd[v], -mean[v] * rstd[v])",
        "What exceeds the deviation is lost.",
    ),
    Fault("rows-gradient-loads", _GRADIENT, "      if (i + j < own) {\n", "      {\n", "Loads have no end."),
    Fault("rows-gradient-stores", _GRADIENT, "      if (i + j >= own) break;\n", "", "Stores have no end."),
    Fault("rows-gradient-q-in-place", _GRADIENT, "    q += kGradientPixels * step;\n", "", "Every round is the first."),
    Fault(
        "rows-gradient-writes-in-place", _GRADIENT, "    out += kGradientPixels * out_step;\n", "", "Rounds overwrite."
    ),
]

_PLAN = [
    Fault(
        "rows-vectors-unaligned",
        _LAUNCH,
        "    if (reinterpret_cast<uintptr_t>(data) % kVectorBytes != 0) return false;\n",
        "    if (data == &p) return false;\n",
        "Vectors begin where elements do.",
    ),
    Fault(
        "rows-vectors-across-branches",
        _LAUNCH,
        "p.width % Vector<T>::kSize == 0",
        "p.pitch % Vector<T>::kSize == 0",
        "Vectors reach into the next branch.",
    ),
    Fault(
        "rows-never-by-vectors",
        _LAUNCH,
        "return p.width % Vector<T>::kSize == 0;",
        "return false;",
        "All rows are served by elements.",
    ),
    Fault(
        "rows-parts-as-of-elements",
        _LAUNCH,
        "channels % Vector<T>::kSize == 0",
        "channels < 0",
        "Vectors have parts as elements would.",
    ),
    Fault(
        "rows-plan-floors-channels",
        _LAUNCH,
        "return ceil_divide(channels, row_tile<T>(vectors, channels).lanes * (vectors ? Vector<T>::kSize : 1));",
        "return channels / (row_tile<T>(vectors, channels).lanes * (vectors ? Vector<T>::kSize : 1));",
        "Channels that fill no tile are left out.",
    ),
    Fault(
        "rows-plan-floors-pixels",
        _LAUNCH,
        "p.group_pixels / pixels + (p.group_pixels % pixels != 0)",
        "p.group_pixels / pixels + (p.group_pixels < pixels)",
        "Pixels that fill no tile are left out.",
    ),
    Fault(
        "rows-plan-one-image",
        _LAUNCH,
        "p.sets == 1 ? int64_t{p.images} * p.pixels : p.pixels",
        "p.pixels",
        "One image of several is served.",
    ),
    Fault(
        "rows-plan-all-images",
        _LAUNCH,
        "p.sets == 1 ? int64_t{p.images} * p.pixels : p.pixels",
        "int64_t{p.images} * p.pixels",
        "Each set's blocks serve all images.",
    ),
    Fault(
        "rows-plan-one-round",
        _LAUNCH,
        "p.rounds = rounds_of(columns * tiles(least));",
        "p.rounds = 1;",
        "Terms are loaded for few pixels.",
    ),
    Fault("rows-config-parts-of-none", _CONFIG, "most < 1 ? 1 : wanted", "wanted", "Small images have no parts."),
    Fault(
        "rows-config-parts-without-end",
        _CONFIG,
        "wanted < most ? static_cast<int>(wanted) : most",
        "most",
        "Many images have many parts as well.",
    ),
    Fault("rows-config-thin-parts", _CONFIG, "kLeastPixels = 8", "kLeastPixels = 1", "A thread has a pixel of a part."),
    Fault("rows-config-parts-floor", _CONFIG, "count + (index < more)", "count", "A part's last pixel is left out."),
    Fault(
        "rows-config-parts-overlap", _CONFIG, "index * count + smaller(index, more)", "index * count", "Parts overlap."
    ),
]

_OF_BINDING = [
    Fault(
        "rows-any-strides",
        "binding/checks.h",
        "t.stride(d) == expected",
        "true",
        "Contiguous images are taken for rows.",
    ),
    Fault(
        "rows-any-sets",
        _BINDING,
        "(t.size(0) == 1 || t.size(0) == q.size(0))",
        "true",
        "Sets of terms for other images are accepted.",
    ),
    Fault("rows-any-statistics", _BINDING, "t.size(1) == rows && ", "", "Rows of terms are read behind their end."),
    Fault("rows-any-channels", _BINDING, " && branches * width == q.size(1)", "", "Terms are read behind their end."),
    Fault(
        "rows-any-terms-dtype",
        _BINDING,
        '  check_like(t, q, name, sum_dtype(q), "q");\n',
        "",
        "Terms of another dtype are read as if they were of the sums'.",
    ),
    Fault(
        "rows-any-terms-strides", _BINDING, "t.is_contiguous()", "true", "Terms of other strides are read as if dense."
    ),
    Fault(
        "rows-any-gradient-dtype",
        _BINDING,
        '    check_like(*gradient, q, "gradient", q.scalar_type(), "q");\n',
        "",
        "A gradient of another dtype is read as q's.",
    ),
    Fault(
        "rows-any-gradient",
        _BINDING,
        '    check_shape(*gradient, shape_of(q), "gradient");\n',
        "",
        "Gradients of fewer images are read behind their end.",
    ),
    Fault(
        "rows-any-gradient-strides",
        _BINDING,
        '    check_channels_last(*gradient, "gradient");\n',
        "",
        "Contiguous gradients are taken for rows.",
    ),
    Fault(
        "rows-any-coefficients",
        _BINDING,
        '  check_shape(coefficients, {sets, kCoefficients, all, width}, "coefficients");\n',
        "",
        "Coefficients of other sets are read behind their end.",
    ),
    Fault("rows-any-branches", _BINDING, " && branches <= all - first", "", "Branches behind the last are served."),
    Fault("rows-any-first-branch", _BINDING, "first >= 0 && ", "", "Branches before the first are served."),
    Fault("rows-any-pixels", _BINDING, " && height <= INT32_MAX / width", "", "More pixels than an index holds."),
    Fault("rows-any-dimensions", _BINDING, "q.dim() == 4", "true", "Dimensions that are not there are asked for."),
    Fault("rows-first-is-a-channel", _BINDING, "(first * width)", "(first)", "Branches count as channels."),
]

FAULTS = [*_OF_TERMS, *_OF_OUTPUT, *_OF_SUMS, *_OF_GRADIENT, *_PLAN, *_OF_BINDING]
