"""The search file, its errors and its reference."""
