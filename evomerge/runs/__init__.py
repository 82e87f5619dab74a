"""The run directory: event log, history, result and HTML report."""
