"""Comparisons of opened sources: their form, what they compute, how similar they are, and their licences."""
