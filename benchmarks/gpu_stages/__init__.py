"""What benchmarks/gpu.py does on a GPU: one file a stage, each a function that takes a `Run` and records figures."""
