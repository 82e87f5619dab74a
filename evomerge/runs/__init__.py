"""The run directory: event log, history, result, verdict, and the HTML report."""
