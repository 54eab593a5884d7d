"""What the page and the picture of a report both show, worked out once."""

from __future__ import annotations

from dataclasses import dataclass

from moe.runs.changes import Change, changes
from moe.runs.charts import Chart, Marks, charts, loss_chart, marks_of
from moe.runs.heats import Heat, expert_heats, layer_heats
from moe.runs.interruptions import Interruption, interruptions
from moe.runs.reading import Run
from moe.runs.summary import Summary, summary
from moe.runs.task_scores import task_charts


@dataclass(frozen=True)
class Report:
    """Of several runs by their labels; the first is the one reported.

    Attributes:
        interruptions, changes, marks, by_expert, by_layer: of the first.
        charts: of the scores of tasks and of the metrics that have a chart together.
    """

    runs: dict[str, Run]
    summaries: dict[str, Summary]
    interruptions: list[Interruption]
    changes: list[Change]
    marks: Marks
    loss: Chart | None
    charts: list[Chart]
    by_expert: list[Heat]
    by_layer: list[Heat]

    @classmethod
    def of(cls, runs: dict[str, Run]) -> Report:
        run = next(iter(runs.values()))
        found, changed = interruptions(run), changes(run)
        marks = marks_of(run, found, changed)
        return cls(
            runs=runs,
            summaries={label: summary(one) for label, one in runs.items()},
            interruptions=found,
            changes=changed,
            marks=marks,
            loss=loss_chart(runs, marks),
            charts=[*task_charts(runs, marks), *charts(runs, marks)],
            by_expert=expert_heats(run),
            by_layer=layer_heats(run),
        )

    @property
    def first(self) -> tuple[str, Run]:
        """The run that is reported, with its label."""
        return next(iter(self.runs.items()))
