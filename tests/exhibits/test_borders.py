"""Whatever a text holds, it is a text in Markdown, LaTeX, CSV, on the page and on a terminal."""

import csv
import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cpt_repro.errors import UserError, plain
from cpt_repro.exhibits.typeset import TEX, Table, Texts, escape_markdown, escape_tex, write_csv
from cpt_repro.report.page import templates

PIECES = [
    "<script>alert(1)</script>", "<img src=x onerror=a>", '" onload="x', "&lt;b&gt;", "&", "]]>", "<!--",
    "-->", "[a](javascript:x)", "![i](http://x/y.png)", "[a][b]", "[a]: http://x", "<http://x>", "`c`",
    "**b**", "_e_", "~~s~~", "|", "\\", "\\|", "# h", "> q", "---", "$x$", "$", "{", "}", "%", "#", "^^41",
    "~", "\\input{/x}", "\\write18{id}", "\\end{document}", "=HYPERLINK(1)", "=cmd|' /C calc'!A0", "+1+1",
    "@SUM(1)", "-2+3", "-2.5", "\t=1", "\r=1", "\n=1", "＝1", "\x1b[31m", "\x1b]0;t\x07", "\x9b2J", "\x00",
    "\x7f", "\u202e", "\u2066", "\u200f", "\ud800", "\u2028", "\ufeff", "漢", "ü", "\xa0", "\r\n", "\n", " ",
    "a", "1",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.characters()), max_size=6).map("".join)
BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
#: Every piece by itself is tried too.
EVERY = [example(piece) for piece in PIECES]


def whatever(test):
    """Any text, and every piece."""
    for one in EVERY:
        test = one(test)
    return given(TEXTS)(test)


@whatever
def test_a_terminal_is_not_obeyed(text):
    shown = plain(text)
    shown.encode()
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t"}
    assert not {unicodedata.bidirectional(c) for c in shown} & BIDIRECTIONAL
    told = str(UserError(text, where=text, do=text))
    assert told.isprintable()


@whatever
def test_markdown_shows_the_text(text):
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    wanted = " ".join(plain(text).split())
    for around in ("| h |\n| --- |\n| > {} |\n", "- **1**: > {}\n", "**T.** > {}\n"):
        *_, inline = (t for t in reader.parse(around.format(escape_markdown(text))) if t.type == "inline")
        assert {t.type for t in inline.children} <= {"text", "text_special", "strong_open", "strong_close"}
        assert "".join(token.content for token in inline.children).partition(">")[2].strip() == wanted


@whatever
def test_latex_sets_the_text(text):
    made = escape_tex(text)
    ours = sorted(TEX.values(), key=len, reverse=True)
    rest = re.sub("|".join(map(re.escape, ours)), "", made)
    assert not re.search(r"[\\{}$&#^_~%<>|]", rest) and re.fullmatch("[ -~\u00c0-\u017f]*", rest)
    assert len(re.findall(r"\S", made)) >= len("".join(text.split()))


class Read(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data

    handle_comment = handle_decl = handle_pi = unknown_decl = handle_starttag


@whatever
def test_the_page_shows_the_text(text):
    source = '{% macro m(x) %}<i title="{{ x }}">{{ x }}</i>{% endmacro %}{{ m(text) }}'
    read = Read(templates().from_string(source).render(text=text))
    assert read.tags == [("i", [("title", plain(text))])] and read.text == plain(text)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """`table(text)`: the rows of the CSV of a table with it as heading and as cell."""
    path = tmp_path_factory.mktemp("csv") / "t.csv"

    def write(text):
        write_csv(Table([Texts("first of two", ["x"]), Texts(text, [text])], []), path)
        with open(path, encoding="utf-8", newline="") as stream:
            return list(csv.reader(stream))

    return write


@whatever
def test_a_spreadsheet_computes_nothing(table, text):
    for row in table(text):
        (cell,) = row[1:]
        number = re.fullmatch(r"[+-]?[\d.,]+(e[+-]?\d+)?", cell)
        assert number or not re.match(r"[\t\r\n]*[=+\-@＝＋－＠]", cell)
        assert cell in (plain(text), f"'{plain(text)}")
