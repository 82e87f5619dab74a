"""Search files of the field's systems at the scale of their papers, checked without weights and data."""
