"""Atomic files and folders, the machine-wide cache, hashes and one-line messages."""
