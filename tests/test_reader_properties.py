"""What holds of the readers whatever comes: any cell, any text, any markup."""

from collections import Counter

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from cmining.core.scripts import clean_text
from cmining.ingest.corpus import cell_text, text_paragraphs, to_entry
from cmining.ingest.wikitext import _choose_variants, careful_paragraphs, wiki_paragraphs

PLAIN = st.text("ab 茶.\n", max_size=9)
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda cells: st.lists(cells, max_size=3) | st.dictionaries(st.text(), cells),
    max_leaves=5,
)
VARIANTS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.builds("-{{{}}}-".format, inner),
        st.builds("-{{zh-hans:{};zh-hant:{}}}-".format, inner, inner),
        st.builds("-{{{}|{}}}-".format, st.sampled_from("ATRHD"), inner),
        st.builds("[[a|{}]]".format, inner),
        st.builds("{{{{lang|zh|{}}}}}".format, inner),
        st.builds("{}{}".format, inner, inner),
    ),
    max_leaves=8,
)
MARKS = ["-{", "}-", "{{", "}}", "[[", "]]", "|", ";", "zh-cn:", "=>", "a", "茶"]
SOUP = st.lists(st.sampled_from(MARKS), max_size=30).map("".join)
LINES = ["Tea is a drink.", "See also", " Item", "* b", "", "茶は飲み物である。", "a, b,"]


@given(CELLS)
def test_any_cell_is_text_or_counted(cell):
    counts = Counter()
    text = cell_text(cell, "title", counts, is_name=True)
    assert isinstance(text, str)
    if isinstance(cell, (bool, list, dict)):
        assert text == ""
        assert counts.total() == 1
    if isinstance(cell, str):
        assert text == cell


@given(
    st.dictionaries(st.sampled_from(["id", "lang", "title", "paragraphs", "text"]), CELLS)
)
def test_any_row_is_an_entry_or_counted(row):
    counts = Counter()
    entry = to_entry(row, "en", counts)
    if entry is None:
        assert counts["row without title or text column"] == 1
    else:
        assert to_entry(entry, "en", Counter()) == entry
        assert all(p and p == clean_text(p) for p in entry["paragraphs"])


@given(st.lists(st.sampled_from(LINES), max_size=8))
def test_a_paragraph_is_part_of_its_text(lines):
    text = "\n".join(lines)
    words = Counter(text.split())
    paragraphs = text_paragraphs(text, Counter())
    assert bool(paragraphs) == bool(words)
    assert Counter(" ".join(paragraphs).split()) <= words


@given(VARIANTS)
def test_balanced_variant_markup_is_all_read(wikitext):
    shown = _choose_variants(wikitext)
    assert "-{" not in shown
    assert shown.count("[[") == shown.count("]]")
    assert _choose_variants(shown) == shown


TEMPLATE_NAMES = ["lang", "langx", "nihongo", "zh", "korean", "circa", "ill", "unknown"]
ARGUMENTS = PLAIN.map(lambda text: text.replace("\n", " ")) | st.sampled_from(
    ["c=茶", "hangul=차", "lt=tea", "1=de", "2=Tee", "=", "x=", "[[a|b]]", "{{nbsp}}"]
)
TEMPLATES = st.builds(
    lambda name, args: "{{" + "|".join([name, *args]) + "}}",
    st.sampled_from(TEMPLATE_NAMES),
    st.lists(ARGUMENTS, max_size=4),
)


@settings(max_examples=200)
@given(TEMPLATES)
def test_any_template_shows_the_same_both_ways_and_no_markup(template):
    text = f"Tea ({template}) is a drink that people of the valley know well."
    fast, careful = wiki_paragraphs(text), careful_paragraphs(text)
    assert fast == careful
    assert len(fast[0]) == 1
    lead = fast[0][0]
    assert not any(mark in lead for mark in ("{{", "}}", "[[", "]]", "|"))
    assert lead.startswith("Tea") and lead.endswith("know well.")


@settings(max_examples=300)
@given(SOUP)
def test_any_markup_is_read_the_same_way_twice(wikitext):
    text = f"{wikitext}\n\nTea is a drink that people know well."
    assert wiki_paragraphs(text)[1] == careful_paragraphs(text)[1]
    assert len(_choose_variants(wikitext)) <= len(wikitext)
