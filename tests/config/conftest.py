import pytest


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a search file and returns its path."""

    def write(text):
        path = tmp_path / "search.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
