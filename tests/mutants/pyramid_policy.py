"""Faults around separable_pyramid's kernels for tensor cores: plans and launches, formats, and which policy serves."""

from __future__ import annotations

from .faults import Fault

_FOLDER = "separable_pyramid"
_LAUNCH, _RUN, _POLICY = f"{_FOLDER}/launch_matrix.h", f"{_FOLDER}/run.h", f"{_FOLDER}/policy.cpp"
_CONFIG, _TILE, _NAMES = f"{_FOLDER}/matrix_config.h", f"{_FOLDER}/tile.h", f"{_FOLDER}/policy.h"


def _without(name: str, file: str, old: str, breaks: str, index: int = 0, count: int = 1) -> Fault:
    """A line, or a part of one, that is left out."""
    return Fault(f"matrix-{name}", file, old, "", breaks, index, count)


def _changed(name: str, file: str, old: str, new: str, breaks: str, index: int = 0, count: int = 1) -> Fault:
    return Fault(f"matrix-{name}", file, old, new, breaks, index, count)


_PLANS = [
    _without(
        "plan-far-pixels",
        _LAUNCH,
        "    p.level[i].vectors &= p.level[i].stride.h + p.level[i].stride.w <= kFar;\n",
        "Offsets of pixels are cut to 32 bits.",
    ),
    _changed(
        "plan-far-by-one-step",
        _LAUNCH,
        "INT32_MAX / kMaxReach",
        "INT32_MAX",
        "Offsets of a patch's later rows overflow.",
    ),
    _changed(
        "plan-weights-unaligned",
        _LAUNCH,
        "p.weight_vectors = p.pointwise_vectors;",
        "p.weight_vectors = p.whole_vectors;",
        "Pointwise weights are read by vectors wherever they begin.",
    ),
    _without(
        "plan-taps-unaligned",
        _LAUNCH,
        "  for (int i = 0; i < p.branches; ++i) p.weight_vectors &= aligned(p.branch[i].depthwise);\n",
        "Taps are read by vectors wherever they begin.",
    ),
    _without(
        "plan-scale-unaligned",
        _LAUNCH,
        " && aligned(p.inner.scale)",
        "The scale is read by vectors wherever it begins.",
    ),
    _without(
        "plan-shift-unaligned",
        _LAUNCH,
        " && aligned(p.inner.shift)",
        "The shift is read by vectors wherever it begins.",
    ),
    _without(
        "plan-terms-of-odd-channels",
        _LAUNCH,
        "p.whole_vectors && ",
        "Terms of channels that fill no vector are read by vectors.",
    ),
    _without(
        "plan-images-of-scales-anywhere",
        _LAUNCH,
        " &&\n                   p.inner.scale_image % kTerms == 0",
        "An image's scales are read by vectors wherever they begin.",
    ),
    _without(
        "plan-images-of-shifts-anywhere",
        _LAUNCH,
        " && p.inner.shift_image % kTerms == 0",
        "An image's shifts are read by vectors wherever they begin.",
    ),
    _changed(
        "plan-chunks-of-all",
        _LAUNCH,
        "t.chunks += ceil_divide(p.level[i].channels, kChunk<sizeof(T)>);",
        "t.chunks = ceil_divide(p.channels, kChunk<sizeof(T)>);",
        "Levels that fill no whole chunk are left out.",
    ),
    _changed(
        "plan-splits-floored",
        _LAUNCH,
        "ceil_divide(t.chunks, kSplitChunks);",
        "t.chunks / kSplitChunks + (t.chunks < kSplitChunks);",
        "Chunks past the last whole split are never made.",
    ),
    _changed(
        "plan-splits-of-nothing",
        _LAUNCH,
        "ceil_divide(t.chunks, kSplitChunks);",
        "t.chunks / kSplitChunks + 1;",
        "Where splits are whole, blocks have nothing to do.",
    ),
    _changed(
        "plan-tiles-of-one-image",
        _LAUNCH,
        "return tiles * p.batch;",
        "return tiles;",
        "Images after the first have no tiles.",
    ),
    _changed(
        "rounds-leave-tiles-out",
        _LAUNCH,
        "first < all; first += room) {",
        "first < all; first += room + 1) {",
        "Between two rounds a tile is left out.",
    ),
    _changed(
        "rounds-go-past-the-last",
        _LAUNCH,
        "all - first < room ? all - first : room;",
        "room;",
        "The last round works on tiles that do not exist.",
    ),
    _without(
        "rounds-of-the-first-tiles",
        _LAUNCH,
        "    t.first_tile = static_cast<uint32_t>(first);\n",
        "Every round is the first.",
    ),
    _changed(
        "rounds-make-one-block-of-outputs",
        _LAUNCH,
        "{tiles * t.forward.output_tiles, kThreads",
        "{tiles, kThreads",
        "Outputs of later blocks are not written.",
    ),
    _changed(
        "rounds-make-one-split",
        _LAUNCH,
        "{tiles * t.splits, kNormalisers",
        "{tiles, kNormalisers",
        "h of later splits is not written.",
    ),
    _without("nth-chunk-of-the-first-level", _TILE, "    n -= chunks;\n", "Chunks of later levels are mistaken."),
]

_FORMATS = [
    _changed(
        "levels-copied-in-vain",
        _RUN,
        "level.channels % V != 0 || channels_in_vectors<T>(level.data, level.stride)",
        "level.channels % V != 0",
        "Levels are copied that could be read as they lie.",
    ),
    _changed(
        "odd-levels-copied-in-vain",
        _RUN,
        "level.channels % V != 0 || channels_in_vectors<T>(level.data, level.stride)",
        "channels_in_vectors<T>(level.data, level.stride)",
        "Levels are copied that are read by elements all the same.",
    ),
    _without(
        "levels-described-without-gaps",
        _RUN,
        "      if (tensor.size(1) == 0) continue;\n",
        "A level without channels takes another's place.",
    ),
    _without(
        "level-copy-left-empty",
        _RUN,
        "      torch::stable::copy_(copies_.back(), tensor);\n",
        "A level's copy holds whatever lies there.",
    ),
    _without(
        "level-copy-strides",
        _RUN,
        "      level.stride = strides_of(copies_.back());\n",
        "A level's copy is read as the level lies.",
    ),
    _changed(
        "output-by-elements",
        _RUN,
        "if (p.outputs % V == 0 && ",
        "if (p.outputs % V == 0 && false && ",
        "Outputs in other formats leave one by one.",
    ),
    _changed(
        "odd-outputs-copied-in-vain",
        _RUN,
        "if (p.outputs % V == 0 && ",
        "if (",
        "Outputs are copied that are written by elements all the same.",
    ),
    _without(
        "output-copy-strides",
        _RUN,
        "      p.output_stride = strides_of(target_);\n",
        "The output's copy is written as the output lies.",
    ),
    _without("output-not-copied-back", _RUN, "      copy_back_ = true;\n", "The output is never written."),
    _changed(
        "policies-exchanged",
        _RUN,
        "if (choice.policy == Policy::kMma) {",
        "if (choice.policy != Policy::kMma) {",
        "The single launch serves for the two passes.",
    ),
    _changed(
        "workspace-ignored",
        _RUN,
        "bytes > 0 ? bytes : device.cache_bytes / 2",
        "device.cache_bytes / 2",
        "The two passes take more than they may.",
    ),
    _changed(
        "workspace-of-all-the-cache",
        _RUN,
        "device.cache_bytes / 2;",
        "device.cache_bytes;",
        "h pushes all else out of the cache.",
    ),
    _changed(
        "workspace-waves-of-one-block",
        _RUN,
        "size.tile_bytes, shares_of(p.outputs));",
        "size.tile_bytes, 1);",
        "Waves are counted as if each tile were one block.",
    ),
    _changed(
        "workspace-of-less-than-a-wave",
        _RUN,
        "std::max(fitting, least)",
        "fitting",
        "A small cache leaves multiprocessors without work.",
    ),
    _changed(
        "workspace-passed-for-a-wave",
        _RUN,
        "bytes > 0 ? 1 : tiles_of_a_wave",
        "tiles_of_a_wave",
        "More is kept than the call allows.",
    ),
    _changed(
        "workspace-of-all-tiles",
        _RUN,
        "std::min(std::max(fitting, least), size.tiles);",
        "size.tiles;",
        "All tiles' h is made before any is multiplied.",
    ),
]

_DECISIONS = [
    _changed(
        "shares-one-more",
        _CONFIG,
        "(outputs + kMatrixColumns - 1) / kMatrixColumns",
        "outputs / kMatrixColumns + 1",
        "256 outputs count as two blocks' work.",
    ),
    _changed(
        "name-of-two-pass",
        _NAMES,
        'policy == Policy::kMma ? "mma" : "two-pass"',
        'policy == Policy::kMma ? "two-pass" : "mma"',
        "The policies go by each other's names.",
    ),
    _without(
        "reason-of-no-device",
        _POLICY,
        '  if (device.arch == 0) return "a device without tensor cores was asked for";\n',
        "The reason is a compute capability 0.0.",
    ),
    _changed(
        "oldest-arch-refused",
        _POLICY,
        "device.arch < kOldestArch",
        "device.arch <= kOldestArch",
        "8.0 itself is refused.",
    ),
    _changed(
        "older-arch-taken",
        _POLICY,
        "device.arch < kOldestArch",
        "device.arch < 70",
        "7.5 is taken, which lacks cp.async.",
    ),
    _changed(
        "arch-without-its-minor",
        _POLICY,
        "std::to_string(device.arch % 10);",
        "std::to_string(device.arch / 100);",
        "The reason names another compute capability.",
    ),
    _changed(
        "float64-taken",
        _POLICY,
        "if (problem.type == ElementType::kFloat64)",
        "if (false)",
        "float64 is said to be served by tensor cores.",
    ),
    _without(
        "float32-never-taken",
        _POLICY,
        " && !problem.allow_tf32",
        "float32 is refused where TF32 is allowed.",
    ),
    _changed(
        "float32-always-taken",
        _POLICY,
        " && !problem.allow_tf32",
        " && false",
        "float32 becomes TF32 where it may not.",
    ),
    _changed(
        "padding-bound-itself",
        _POLICY,
        "if (products > speed_up(",
        "if (products >= speed_up(",
        "As much work as tensor cores make up for is refused already.",
    ),
    _changed(
        "padding-of-the-others-unseen",
        _POLICY,
        "(problem.outputs + kColumns - 1) / kColumns * kColumns;",
        "problem.outputs;",
        "Plain multiply-adds are said to fill up no blocks.",
    ),
    _changed(
        "speed-of-tf32-as-of-halves",
        _POLICY,
        "problem.type != ElementType::kFloat32;",
        "true;",
        "TF32 on GeForce is said to be faster than it is.",
    ),
    _without(
        "speed-of-hopper-unknown",
        _POLICY,
        " || device.arch / 10 == 9",
        "An H100 is taken for a GeForce.",
    ),
    _without(
        "speed-of-blackwell-unknown",
        _POLICY,
        " || device.arch / 10 == 10",
        "A B200 is taken for a GeForce.",
    ),
    _changed(
        "asked-for-by-another-name",
        _POLICY,
        'requested == "mma" ? Policy::kMma : Policy::kTwoPass, "asked',
        'requested != "mma" ? Policy::kMma : Policy::kTwoPass, "asked',
        "The two policies change places.",
    ),
    _changed(
        "shares-bound-itself",
        _POLICY,
        "if (shares > kMostShares",
        "if (shares >= kMostShares",
        "Three blocks of outputs take two passes already.",
    ),
    _changed(
        "asked-for-fma-after-all",
        _POLICY,
        'if (requested == "fma") return {Policy::kFma, "asked for by name"};',
        "",
        "Plain multiply-adds cannot be asked for.",
    ),
    _without(
        "two-pass-unknown",
        _POLICY,
        ' && requested != "two-pass"',
        "Two passes cannot be asked for.",
    ),
    _without(
        "refusals-ignored",
        _POLICY,
        "  if (const std::string why_not = refusal(device, problem); !why_not.empty()) "
        "return {Policy::kFma, why_not};\n",
        "Tensor cores serve what they cannot.",
    ),
    _changed(
        "room-for-no-tile",
        _POLICY,
        "std::max<int64_t>(cache_bytes / tile_bytes, 1)",
        "(cache_bytes / tile_bytes)",
        "Nothing is worked on where a tile does not fit.",
    ),
    _changed(
        "room-in-waves-of-tiles",
        _POLICY,
        "device.multiprocessors / shares",
        "device.multiprocessors",
        "A wave is said to take as many tiles as multiprocessors.",
    ),
    _changed(
        "room-in-waves-of-nothing",
        _POLICY,
        "std::max<int64_t>(device.multiprocessors / shares, 1)",
        "(device.multiprocessors / shares)",
        "A tile with more blocks than multiprocessors divides by 0.",
    ),
    _changed(
        "room-of-broken-waves",
        _POLICY,
        "tiles < wave ? tiles : tiles / wave * wave",
        "tiles",
        "The last wave of each round is not full.",
    ),
    _changed(
        "room-less-than-a-wave",
        _POLICY,
        "tiles < wave ? tiles : tiles / wave * wave",
        "tiles / wave * wave",
        "Less than a wave is nothing.",
    ),
    _changed(
        "typical-device-of-a-newer",
        _POLICY,
        "if (arch >= device.arch) return device;",
        "if (arch > device.arch) return device;",
        "Devices stand for newer ones only.",
    ),
]

FAULTS = [*_PLANS, *_FORMATS, *_DECISIONS]
