"""The demo's models, tasks and search file: where they lie, and a copy of them for a user."""
