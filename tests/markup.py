"""A page as a browser would take it, and names that it must not take for its own words."""

from html.parser import HTMLParser

HOSTILE = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "a\nb\r\x00\u202egnp.exe", "x" * 5000,
           "{{ 7 * 7 }}", "&lt;b&gt;", "שלום", "NA"]  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of a page: its text, and the names and values of all attributes."""

    def __init__(self, file):
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.text, self.tags, self.attributes, self.open = "", [], [], []
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += f" {data}"


def values(page, *names):
    return [value for name, value in page.attributes if name in names]
