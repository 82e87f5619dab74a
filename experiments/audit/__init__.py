"""Recomputes the published figures: every table and every figure in a sentence, from the results beside it."""
