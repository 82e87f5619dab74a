"""How far estimates from few answers are from the full score."""
