"""A model's units in the order of another model's: the same function in weights that can be merged with the other's."""
