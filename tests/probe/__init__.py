"""Holds the two bodies of every wrapper in csrc/device against each other: a GPU's and host execution's."""
