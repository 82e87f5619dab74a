"""What may be merged: recipes (points) and search spaces (sets of points); no torch."""
