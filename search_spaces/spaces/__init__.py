"""Sets of points: genes, and each search space beside its config."""
