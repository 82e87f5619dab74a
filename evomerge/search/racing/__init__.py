"""Races during a search: candidates are asked in blocks, and those that cannot matter are stopped."""
