"""Pretraining of Mixture-of-Experts language models with Composer and Streaming."""

__version__ = "0.2.0"  # setup.py reads it from this line
