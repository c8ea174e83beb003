"""FastFCN's models: every system of the paper, its checkpoints, and timm's backbones."""

from .checkpoint import load, load_weights, save_weights
from .fastfcn import FastFCN, fastfcn

__all__ = ["FastFCN", "fastfcn", "load", "load_weights", "save_weights"]
