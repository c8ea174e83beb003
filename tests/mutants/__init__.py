"""Mutation testing of the kernels: single faults put into their sources, each of which a check must notice."""
