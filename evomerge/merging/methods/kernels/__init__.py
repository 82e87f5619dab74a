"""Code that numba compiles, of the extra `fast`; it is imported where it is called, never with the methods."""
