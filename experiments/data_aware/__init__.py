"""Merge methods that look at data, each expert on its own training text, against the uniform average."""
