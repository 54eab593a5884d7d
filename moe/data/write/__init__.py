"""Conversion: from a request to a folder of MDS shards, through units of work that may be made anywhere."""
