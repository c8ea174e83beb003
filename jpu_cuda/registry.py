"""Makes ``type='jpu_cuda.JPU'`` buildable in mmengine's registries; needs mmengine.

mmengine imports ``<scope>.registry`` by itself when a config names a type of that scope. The scope is
ours alone, so mmsegmentation's own ``JPU`` stays what it was.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from .mmseg import JPU

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="jpu_cuda", locations=["jpu_cuda.mmseg"])
MODELS.register_module(name="JPU", module=JPU)
