"""Before a run: what it will take (estimate), whether it can start (checks), where a step's time goes (profile)."""
