"""Microbenchmarks of what a fused kernel for compute capability 9.0 would stand on; see docs/hopper.md."""
