"""From a recipe and its sources to the weights of one resident model."""
