"""The run folder on disk: checkpoints, their copy on s3, the run's history, and what may change between two starts."""
