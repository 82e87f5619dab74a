"""mergekit's files as they are: several documents in one, keys it passes over, files of its other commands."""
