"""How many finalists are worth their answers."""
