"""The modules: parameters under the names of the public families, one core under all of them."""

from .fastfcn import JPU, JPU_X

__all__ = ["JPU", "JPU_X"]
