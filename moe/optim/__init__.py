"""Optimizer, parameter groups and schedules."""

from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.optim.schedules import SCHEDULERS

__all__ = ["SCHEDULERS", "Muon", "build_groups"]
