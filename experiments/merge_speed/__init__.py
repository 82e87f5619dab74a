"""What a merge costs per candidate: against the memory's bandwidth, and against mergekit."""
