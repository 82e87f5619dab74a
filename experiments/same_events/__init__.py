"""Whether two versions of evomerge record the same events for the same searches."""
