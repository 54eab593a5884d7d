"""Whether a run is well: alarms, alerts, loss spikes, how evenly experts are used, where it hangs."""
