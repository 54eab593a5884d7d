"""Batches for training and evaluation: from converted folders, or from text that is tokenised as it is read."""
