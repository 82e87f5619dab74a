"""From recipe to weights: sources opened once, merged block by block into one resident model, written out."""
