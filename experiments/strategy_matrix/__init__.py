"""Whether a search hands over a loss: every strategy over every space, with a tiny budget."""
