"""Whether evomerge is ready for a GPU: merges against the device's bandwidth, a search, generation, and what fails."""
