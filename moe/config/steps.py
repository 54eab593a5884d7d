"""How long a run is, in optimizer steps, and at which of them something is due."""

from __future__ import annotations

from typing import NamedTuple

from moe.config.schema import Config
from moe.config.times import Every, Time, parse_time


class Steps(NamedTuple):
    tokens_per_step: int
    total: int
    duration: Time  # max_duration

    @classmethod
    def of(cls, config: Config) -> Steps:
        tokens_per_step = config.global_train_batch_size * config.max_seq_len
        duration = parse_time(config.max_duration)
        return cls(tokens_per_step, duration.to_steps(tokens_per_step), duration)

    @property
    def tokens(self) -> int:
        """As `max_duration` has it: the last step may go beyond."""
        return self.duration.to_tokens(self.tokens_per_step)

    def every(self, interval: str) -> Every:
        """`interval` as the config has it, such as 1000ba."""
        return Every(parse_time(interval), self.tokens_per_step, self.total)
