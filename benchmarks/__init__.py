"""Measures FastFCN's systems: ``python -m benchmarks --help``."""
