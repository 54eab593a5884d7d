"""Pretraining of Mixture-of-Experts language models with Composer and Streaming."""

__version__ = "0.1.0"
