"""What may be merged: the recipe (a point) and the search spaces (sets of points)."""
