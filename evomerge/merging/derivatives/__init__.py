"""Derivatives of a loss of the resident model by the coefficients of its merge, and the memory that they take."""
