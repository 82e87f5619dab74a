"""Where candidates are scored: in this process, or by Ray actors. `register_workers` adds a worker kind."""
