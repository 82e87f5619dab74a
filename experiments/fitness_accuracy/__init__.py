"""How far estimates from few answers lie from the full score."""
