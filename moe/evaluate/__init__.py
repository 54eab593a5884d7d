"""Scores a model: its loss on converted data, and tasks of lm-eval. Knows no Composer; training may call it."""
