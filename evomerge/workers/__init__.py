"""Where candidates are scored: in this process, or by Ray actors."""
