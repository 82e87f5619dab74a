from pathlib import Path

from evomerge.config.reference import reference
from evomerge.config.schema import hint_of, sections
from evomerge.config.search_file import SearchConfig

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference.md"


def test_the_page_is_fresh():
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run `python -m evomerge.config.reference > docs/reference.md`"
    )


def test_every_key_is_documented():
    seen, queue = set(), [SearchConfig]
    while queue:
        section = queue.pop()
        if section in seen:
            continue
        seen.add(section)
        for name, field in section.model_fields.items():
            assert field.description or name == "kind", f"{section.__name__}.{name} has no docstring"
            queue += sections(hint_of(field))
    assert len(seen) > 6
