"""Checkpoints of two training runs that trade two tasks off, and the shares by which they are best mixed."""
