"""What a run looks like to a reader: one HTML page without scripts or outside references."""
