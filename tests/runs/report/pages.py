"""Reading a report's page: the cells of its tables, and the data of its figures."""

import json
from html.parser import HTMLParser


class _Tables(HTMLParser):
    """Collects each table's rows of cells' texts, and all texts outside of scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tables, self.texts, self.scripts = [], [], []
        self._cell, self._raw = None, False

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag in ("script", "style"):
            self._raw = True
            self.scripts += [[dict(attributes), ""]] if tag == "script" else []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join("".join(self._cell).split()))
            self._cell = None
        elif tag in ("script", "style"):
            self._raw = False

    def handle_data(self, data):
        if self._raw:
            if self.scripts:
                self.scripts[-1][1] += data
        else:
            self.texts.append(data)
            if self._cell is not None:
                self._cell.append(data)


class Page:
    """A report's page."""

    def __init__(self, html):
        parsed = _Tables()
        parsed.feed(html)
        self.html, self.tables, self.text = html, parsed.tables, " ".join(" ".join(parsed.texts).split())
        (data,) = (text for attributes, text in parsed.scripts if attributes.get("type") == "application/json")
        self.data = json.loads(data)
        self.scripts = [text for attributes, text in parsed.scripts if "type" not in attributes]

    @property
    def markup(self):
        """The page without its scripts."""
        html = self.html
        for script in self.scripts:
            html = html.replace(script, "")
        return html

    def row(self, first):
        """Return the cells of the first row whose first cell begins so."""
        return next(row for table in self.tables for row in table if row and row[0].startswith(first))

    def values(self, figure, view=0):
        """Return all rows of data of a figure's drawing."""
        spec = self.data["figures"][figure][view]
        return [
            row for rows in spec.get("datasets", {"": spec.get("data", {}).get("values", [])}).values() for row in rows
        ]
