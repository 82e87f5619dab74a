"""The demo's models, tasks and search file: where they are, and a copy of them for a user."""
