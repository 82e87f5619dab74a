"""Experiments: the zoo of small models, the quickstart, and one folder per reproduced result."""
