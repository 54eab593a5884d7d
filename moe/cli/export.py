"""Write a checkpoint as a Hugging Face folder, verified by transformers; or with --from-hf make a checkpoint of one."""

from moe.use.export.flags import add_arguments
from moe.use.export.flags import export_from as run

__all__ = ["add_arguments", "run"]
