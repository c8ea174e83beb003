"""``python -m jpu_cuda``: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from . import __version__, _extension


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: its words; those of the process if None.

    Returns:
        0, or 2 after an error, which is one line on standard error.
    """
    parser = argparse.ArgumentParser(prog="python -m jpu_cuda", description="Joint Pyramid Upsampling")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    described = "say which kernels this installation has, and whether they serve this machine's GPUs"
    commands.add_parser("info", help=described, description=described)
    described = "segment one image: writes <name>_mask.png and <name>_overlay.png"
    segment_parser = commands.add_parser("segment", help=described, description=described)
    missing: ImportError | None = None
    try:
        from . import segment
    except ImportError as error:  # the other commands need none of what it needs
        missing = error
        segment_parser.add_argument("words", nargs=argparse.REMAINDER)
    else:
        segment.add_arguments(segment_parser)
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        return _info()
    if missing is not None:
        needed = "pip install 'jpu-cuda[models]'"
        print(f"error: expected Pillow to be installed ({needed}), got: {missing}", file=sys.stderr)
        return 2
    try:
        segment.run(arguments)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)  # PyTorch's have several lines
        return 2
    return 0


def _info() -> int:
    print(f"jpu_cuda {__version__}, torch {torch.__version__}")
    print("kernels:", _extension.load().reason)
    for index in range(torch.cuda.device_count()):
        why_not = _extension.supports(index)
        print(f"{torch.cuda.get_device_name(index)}: {'served by the kernels' if why_not is None else why_not}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
