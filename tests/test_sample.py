"""The bundled corpus keeps its promises: ids, counts, scripts, lengths, no wording twice.

`python tests/test_sample.py` prints the table of counts for data/sample/README.md.
"""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest

from cmining.ingest.corpus import entry_id

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
LANGS = ["de", "en", "es", "fr", "ja", "zh"]
KINDS = [
    "universal",
    "universalised",
    "culture",
    "foreign",
    "jargon",
    "instance",
    "functional",
    "incoherent",
]
COLUMNS = "id lang title split kind concept home theme gloss_en q1 q2 q3 q4 q5".split()
PROSE = ["universal", "culture"]
# characters of a paragraph; words, 30 to 80, in the others
SIZES = {"ja": (65, 200), "zh": (50, 150)}


def read_entries(lang: str) -> list[dict]:
    lines = (SAMPLE / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


labels = pd.read_csv(SAMPLE / "labels.csv", keep_default_na=False)
entries = {lang: read_entries(lang) for lang in LANGS}
text_of = {e["id"]: e["paragraphs"] for same in entries.values() for e in same}


def counts_table() -> str:
    "Entries by kind and language, as Markdown."
    table = pd.crosstab(labels["kind"], labels["lang"]).reindex(KINDS)[LANGS]
    table["all"] = table.sum(axis=1)
    table.loc["all"] = table.sum()
    rows = [["kind", *table.columns], ["---"] + ["--:"] * len(table.columns)]
    rows += [[kind, *map(str, counts)] for kind, counts in table.iterrows()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def units(text: str, lang: str) -> int:
    "The length of a text: characters without spaces, or words."
    return len(re.sub(r"\s", "", text)) if lang in SIZES else len(text.split())


def test_labels_and_entries_agree():
    assert list(labels) == COLUMNS
    assert labels["id"].is_unique
    listed = [(lang, e["id"], e["title"]) for lang in LANGS for e in entries[lang]]
    assert sorted(listed) == sorted(zip(labels["lang"], labels["id"], labels["title"]))
    assert all(i == entry_id(lang, title) for lang, i, title in listed)
    assert set(labels["kind"]) == set(KINDS) and set(labels["split"]) == {"dev", "test"}
    assert labels[["q1", "q2", "q3", "q4", "q5"]].isin([0, 1]).all(axis=None)
    assert labels["concept"].str.fullmatch("[a-z0-9_]+").all()
    assert labels["gloss_en"].ne("").all()
    place = "[A-Z]{2}(-[A-Z0-9]{1,3})?"  # ISO 3166, country or subdivision
    at_home = labels["kind"].isin(["culture", "foreign", "universalised"])
    assert labels.loc[at_home, "home"].str.fullmatch(rf"{place}(\+{place})*").all()


LEAST = {
    "universal": 60,
    "culture": 50,
    "universalised": 6,
    "foreign": 6,
    "jargon": 6,
    "instance": 6,
    "functional": 12,
    "incoherent": 8,
}


@pytest.mark.parametrize("lang", LANGS)
def test_counts(lang):
    of_lang = labels[labels["lang"] == lang]
    n = of_lang["kind"].value_counts()
    for kind, least in LEAST.items():
        assert n[kind] >= least, kind
    families = of_lang.loc[of_lang["kind"] == "culture", "theme"].value_counts()
    assert families.drop("alone").between(6, 9).sum() >= 7
    assert families["alone"] >= 8


def test_universal_concepts_are_in_all_languages():
    universal = labels[labels["kind"].isin(["universal", "universalised"])]
    assert (universal.groupby("concept")["lang"].nunique() == 6).all()


def test_concepts_and_themes_are_not_split():
    shared = labels[labels["kind"].isin(["universal", "universalised"])]
    assert (shared.groupby("concept")["split"].nunique() == 1).all()
    families = labels[(labels["kind"] == "culture") & (labels["theme"] != "alone")]
    assert (families.groupby(["lang", "theme"])["split"].nunique() == 1).all()


@pytest.mark.parametrize("lang", LANGS)
def test_lengths(lang):
    low, high = SIZES.get(lang, (30, 80))
    prose = labels[(labels["lang"] == lang) & labels["kind"].isin(PROSE)]
    for row in prose.itertuples():
        assert 3 <= len(text_of[row.id]) <= 5, row.title
        assert all(low <= units(p, lang) <= high for p in text_of[row.id]), row.title


# what a text must have, and must not have
SCRIPTS = {
    "ja": ("[ぁ-ゖ]", None),
    "zh": ("[一-鿿]", "[ぁ-ゖ]"),
    "de": ("[a-zäöüß]", "[一-鿿]{20}"),
    "fr": ("[a-zéè]", "[一-鿿]{20}"),
    "es": ("[a-zñ]", "[一-鿿]{20}"),
    "en": ("[a-z]", "[一-鿿]{20}"),
}


@pytest.mark.parametrize("lang", LANGS)
def test_scripts(lang):
    needs, never = SCRIPTS[lang]
    for e in entries[lang]:
        text = " ".join(e["paragraphs"])
        assert re.search(needs, text), e["title"]
        assert not (never and re.search(never, text)), e["title"]


COMMON = {"de": "der die und", "en": "the of and", "es": "el la de", "fr": "le la de"}


@pytest.mark.parametrize("lang", list(COMMON))
def test_the_text_is_in_its_language(lang):
    text = " ".join(p for e in entries[lang] for p in e["paragraphs"])
    words = Counter(re.findall(r"\w+", text.lower()))
    total = {other: sum(words[w] for w in COMMON[other].split()) for other in COMMON}
    most_frequent = max(total, key=total.get) == lang
    # Spanish and French share common words
    romance = lang in ("es", "fr") and total[lang] > total["en"] + total["de"]
    assert most_frequent or romance


def tokens_of(paragraph: str, lang: str) -> list[str]:
    "Its words, or its characters where words are not spaced."
    if lang in SIZES:
        return list(re.sub(r"[\s、。，．,.]", "", paragraph))
    return re.findall(r"\w+", paragraph.lower())


@pytest.mark.parametrize("lang", LANGS)
def test_no_wording_twice(lang):
    "No two paragraphs share 8 words in a row, or 16 characters."
    n = 16 if lang in SIZES else 8
    where = defaultdict(set)
    for e in entries[lang]:
        for i, paragraph in enumerate(e["paragraphs"]):
            tokens = tokens_of(paragraph, lang)
            for j in range(len(tokens) - n + 1):
                where[tuple(tokens[j : j + n])].add((e["title"], i))
    assert not [(gram, places) for gram, places in where.items() if len(places) > 1]


def test_readme_states_the_counts():
    assert counts_table() in (SAMPLE / "README.md").read_text(encoding="utf-8"), (
        "the table is now\n" + counts_table()
    )


if __name__ == "__main__":
    print(counts_table())
