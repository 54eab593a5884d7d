"""Optimizer, parameter groups, schedules and the rates they give. Nothing is imported here."""
