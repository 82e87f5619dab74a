"""Write the table of merge methods that recipes read: ``python -m evomerge.merging.methods``."""

from evomerge.merging.methods.table import table
from search_spaces.recipes.methods import TABLE

if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
