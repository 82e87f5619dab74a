"""The error that an unusable source raises."""


class CheckpointError(ValueError):
    """A source that cannot be used; one line that says what to do, after the source's name or reference and a colon."""
