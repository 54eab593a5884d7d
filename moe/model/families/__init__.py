"""Architectures of transformers that compute what a model of this project computes; one file each."""
