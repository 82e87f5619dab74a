"""The search file: what it may hold, how it is read, how its errors read, and its reference."""
