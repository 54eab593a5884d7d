"""What a run will need, from its config alone: memory, time, disk. Arithmetic only; torch is not imported."""
