"""The production checklist: what can be known to stop a run, or to make it worthless, before it starts."""
