"""Write the table of merge methods that recipes read, and, in a checkout, that of ``docs/methods.md``:
``python -m evomerge.merging.methods``.
"""

from pathlib import Path

from evomerge.merging.methods.table import table, with_table
from search_spaces.recipes.methods import TABLE

if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    page = Path(__file__).parents[3] / "docs" / "methods.md"
    if page.exists():
        page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
