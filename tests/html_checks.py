"""What every HTML file that we write must be, and what is in one."""

import itertools
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "link", "img", "br", "hr", "input"}
ADDRESSES = {"src", "href", "srcset", "poster", "data", "action", "xlink:href"}


class Seen(HTMLParser):
    """Elements with their attributes, and the text outside of the style sheet."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text, self.style = [], [], "", ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def of(self, tag):
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def checked(html):
    """A page that stands alone, can be read by all, and runs nothing; returns what is in it."""
    seen = Seen(html)
    assert html.lower().startswith("<!doctype html>")
    assert seen.of("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in seen.of("meta"))
    assert not seen.of("script")
    assert not re.search(r"@import|url\(", seen.style)
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in seen.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ADDRESSES & set(attributes):
            address = attributes[name]
            assert address.startswith("data:") or address[1:] in ids, (tag, address)
    assert all(image["alt"] for image in seen.of("img"))
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == len(seen.of("svg"))
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).get("aria-label")
    headings = [int(tag[1]) for tag, _ in seen.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    return seen
