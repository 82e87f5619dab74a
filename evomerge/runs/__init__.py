"""The run directory: event log, history, result, HTML report, and trackers that follow a run."""
