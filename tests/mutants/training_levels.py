"""Faults of the levels' gradient: its strips, their weights, and how an image is cut into them."""

from __future__ import annotations

from .faults import Fault

_LEVEL, _LAUNCH = "separable_pyramid/level_gradient.h", "separable_pyramid/launch_backward.h"


def _changed(name: str, file: str, old: str, new: str, breaks: str) -> Fault:
    return Fault(f"level-{name}", file, old, new, breaks)


_STRIPS = [
    _changed(
        "forgets",
        _LEVEL,
        "    if (add) {\n",
        "    if (false) {\n",
        "What the levels' gradients hold is overwritten.",
    ),
    _changed(
        "forgets-elements",
        _LEVEL,
        "    if (add) sum[0] += widen(*gradient);\n",
        "",
        "What gradients of odd channels hold is overwritten.",
    ),
    _changed(
        "of-the-first-branch",
        _LEVEL,
        "index * g.inputs_branch",
        "0 * g.inputs_branch",
        "All branches have the first one's dz.",
    ),
    _changed(
        "of-the-last-branch",
        _LEVEL,
        "sum[k][v] += branch[k][v];",
        "sum[k][v] = branch[k][v];",
        "Other branches give nothing.",
    ),
    _changed(
        "rows-below-the-image",
        _LEVEL,
        "static_cast<uint32_t>(from_y) < static_cast<uint32_t>(p.height)",
        "from_y >= 0",
        "Taps reach rows below the image.",
    ),
    _changed(
        "rows-above-the-image",
        _LEVEL,
        "static_cast<uint32_t>(from_y) < static_cast<uint32_t>(p.height)",
        "from_y < p.height",
        "Taps reach rows above the image.",
    ),
    _changed(
        "columns-left-of-the-image",
        _LEVEL,
        "if (from_x < 0 || from_x",
        "if (from_x",
        "Taps reach columns left of the image.",
    ),
    _changed(
        "strip-without-its-last-row",
        _LEVEL,
        "r < kRows + 2",
        "r < kRows + 1",
        "A strip's last pixel lacks what comes from below.",
    ),
    _changed(
        "strip-shifted",
        _LEVEL,
        "const int k = r + i - 2;",
        "const int k = r + i - 1;",
        "Rows are added to the pixel below theirs.",
    ),
    _changed(
        "strip-of-neighbours",
        _LEVEL,
        "for (int r = 0; r < kRows + 2; ++r, row += down)",
        "for (int r = 0; r < kRows + 2; ++r, row += below)",
        "Rows of a strip are taken for neighbours.",
    ),
    _changed(
        "strip-of-another-class",
        _LEVEL,
        "line / step * (kRows * step) + line % step",
        "line / step * (kRows * step) + line % (step + 1)",
        "Strips begin in another class than their number says.",
    ),
    _changed(
        "strips-overlap",
        _LEVEL,
        "line / step * (kRows * step)",
        "line / step * ((kRows - 1) * step)",
        "A class's strips begin where the one before ends.",
    ),
    _changed(
        "strip-past-the-image",
        _LEVEL,
        "      if (y + k * step < p.height) put_gradient",
        "      put_gradient",
        "Pixels below the image are written.",
    ),
    _changed(
        "strip-beyond-the-image",
        _LEVEL,
        "if (c >= share.channels || y >= p.height) continue;",
        "if (c >= share.channels) continue;",
        "Strips that the image has no pixel of load rows all the same.",
    ),
    _changed(
        "lanes-past-the-channels",
        _LEVEL,
        "if (c >= share.channels || y",
        "if (y",
        "Lanes behind the last channel write the next pixel.",
    ),
    _changed(
        "weights-of-other-lanes",
        _LEVEL,
        "(v / kPart * kLevelLanes + lane) * kPart",
        "(v / kPart + lane * (V / kPart)) * kPart",
        "Weights are read in the order of channels, which is not theirs.",
    ),
    _changed(
        "weights-in-the-same-banks",
        _LEVEL,
        "kPitch = level_channels<T>(true) + kPart;",
        "kPitch = level_channels<T>(true);",
        "A channel's weights are all written to one bank.",
    ),
    _changed(
        "of-the-first-image",
        _LEVEL,
        "g.first_image + static_cast<int>(rest / target.channel_tiles)",
        "g.first_image",
        "All blocks work on the first image.",
    ),
    _changed(
        "dz-of-other-images",
        _LEVEL,
        "share.image - g.first_image",
        "share.image",
        "Later groups of images read past the end of the workspace.",
    ),
]

_PLAN = [
    _changed(
        "plan-strips-of-the-first-branch",
        _LAUNCH,
        "g.spaced = p.branches == 1 && spaced",
        "g.spaced = spaced",
        "Of several branches the first one alone counts.",
    ),
    _changed(
        "plan-strips-always-spaced",
        _LAUNCH,
        "p.branches == 1 && spaced <= others",
        "p.branches == 1",
        "Large dilations have strips of few pixels.",
    ),
    _changed(
        "plan-strips-never-spaced",
        _LAUNCH,
        "p.branches == 1 && spaced <= others",
        "false",
        "Each pixel loads its own rows.",
    ),
    _changed(
        "plan-whole-strips",
        _LEVEL,
        "ceil_divide(ceil_divide(height, step), rows)",
        "(ceil_divide(height, step) / rows)",
        "Pixels below the last whole strip are left out.",
    ),
    _changed(
        "plan-whole-tiles-of-strips",
        _LAUNCH,
        "(strips * level_rows(g.spaced) + kLevelPixels - 1) / kLevelPixels",
        "(strips * level_rows(g.spaced) + kLevelPixels / 2 - 1) / kLevelPixels",
        "The last block of an image may be missing.",
    ),
]

FAULTS = [*_STRIPS, *_PLAN]
