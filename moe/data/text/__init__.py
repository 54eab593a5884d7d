"""Texts and their tokens: which files a dataset is, their rows as documents, and the documents as ids."""
