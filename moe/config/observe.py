"""Settings of what looks at a run while it trains: benchmarks and loggers. The strings are rows as in schema.py."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EvalTasks:
    names: list[str]
    "Tasks of lm-eval, e.g. [hellaswag, arc_easy] (docs/evaluation.md); needs the extra `eval`."
    interval: str = "5000ba"
    "Time between scorings; the end of the run always makes one."
    limit: int | None = 500
    "At most so many questions of each task; null asks all."
    fewshot: int | None = None
    "Examples before each question; null: the task's own number."
    include_path: str | None = None
    "Folder with task files of your own, e.g. yamls/tasks."


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    pass


@dataclass(frozen=True, kw_only=True)
class WandBConfig:
    project: str = "moe"
    "W&B project."
    entity: str | None = None
    "W&B user or team."
    mode: Literal["online", "offline"] = "online"
    "`offline` needs no account; `wandb sync` uploads later."
    tags: list[str] = field(default_factory=list)
    "Tags of the W&B run."


@dataclass(frozen=True, kw_only=True)
class LoggersConfig:
    tensorboard: TensorBoardConfig | None = field(default_factory=TensorBoardConfig)
    "`{}` writes TensorBoard files into the run folder; null writes none."
    wandb: WandBConfig | None = None
    "Weights & Biases; null turns it off."
