"""Mutation testing of the core: whether a test notices when one line changes."""
