"""Atomic files and folders, the machine-wide cache, hashes, one-line messages, and what a model reference names."""
