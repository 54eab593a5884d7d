"""Backends of the experts' matrix products: a loop for the CPU, grouped products, Triton."""
