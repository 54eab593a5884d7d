"""What was trained: loading it, exporting it, importing other weights."""
