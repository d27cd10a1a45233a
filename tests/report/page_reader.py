"""Reads a report as a browser's parser would, and complains where tags do not match."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br"}


class PageReader(HTMLParser):
    """Tables as lists of rows of (text, attributes), and all start tags with their attributes."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.tables, self.words = [], [], [], []
        self._cell = None
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = [values, ""]
            self.tables[-1][-1].append(self._cell)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.words.append(data)
        if self._cell is not None:
            self._cell[1] += data

    def all(self, tag, **attributes):
        """Attributes of the elements of a name whose classes or attributes are as given."""
        return [
            values
            for name, values in self.tags
            if name == tag
            and all(value in (values.get(key) or "").split() for key, value in attributes.items())
        ]

    @property
    def classes(self):
        """Class → column → text of the class table's `data-value`."""
        head, *rows = self.tables[0]
        names = [text.strip() for _, text in head]
        return {
            row[0][1]: {n: cell[0]["data-value"] for n, cell in zip(names, row)} for row in rows
        }
