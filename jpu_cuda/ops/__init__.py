"""The operators ``torch.ops.jpu_cuda.*``: schemas, fake kernels, autograd, autocast.

They are defined here, in Python, so that they exist with and without a binary. Implementations come from
the compiled extension for CUDA tensors and from host execution for CPU tensors, when one is loaded.
"""

from . import _training_steps, norm_relu  # noqa: F401  define operators that have no derivative to export
from .separable_pyramid import SeparablePyramid
from .trained_pyramid import TrainedPyramid
from .upsample_concat import Upsample, UpsampleBackward, UpsampleConcat
from .upsample_fold import UpsampleFold

__all__ = ["SeparablePyramid", "TrainedPyramid", "Upsample", "UpsampleBackward", "UpsampleConcat", "UpsampleFold"]
