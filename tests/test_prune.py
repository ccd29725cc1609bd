"""Titles that go and titles that stay, the gate against the full path, and a trained model besides the rules."""

import gzip
import json
import random
import time
from pathlib import Path

import pytest
import spacy

from cmining.ingest.articles import list_title
from cmining.mine.prune import (
    covering_labels,
    functional_ruler,
    load_ner,
    plain_title,
    prune_reasons,
)

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="real titles are not beside the checkout (../shared/data)"
)
SIX = ("en", "de", "fr", "es", "ja", "zh")
REASONS = {
    "empty",
    "list",
    "date",
    "year",
    "period",
    "time",
    "cardinal",
    "ordinal",
    "quantity",
    "percent",
    "money",
    "standard",
}

GO = [  # from the issue
    ("fr", "Liste des communes de France", "list"),
    ("de", "Liste der Bundeskanzler", "list"),
    ("en", "1987", "year"),
    ("ja", "3月1日", "date"),
    ("fr", "11 août", "date"),
    ("es", "Siglo XV", "period"),
    ("en", "ISO 3166-1", "standard"),
    ("es", "Anexo:Ríos", "list"),
    ("zh", "中国城市列表", "list"),
    ("ja", "国の一覧", "list"),
    # six languages alike
    ("en", "15th century", "period"),
    ("de", "15. Jahrhundert", "period"),
    ("fr", "XVe siècle", "period"),
    ("ja", "15世紀", "period"),
    ("zh", "15世纪", "period"),
    ("zh", "15世紀", "period"),
    ("en", "August 11", "date"),
    ("de", "11. August", "date"),
    ("es", "11 de agosto", "date"),
    ("ja", "8月11日", "date"),
    ("zh", "8月11日", "date"),
    ("en", "612 BC", "year"),
    ("de", "612 v. Chr.", "year"),
    ("fr", "612 av. J.-C.", "year"),
    ("es", "612 a. C.", "year"),
    ("ja", "紀元前612年", "year"),
    ("zh", "前612年", "year"),
    ("en", "1990s", "period"),
    ("de", "1990er", "period"),
    ("fr", "Années 1990", "period"),
    ("es", "Años 1990", "period"),
    ("ja", "1990年代", "period"),
    ("zh", "1990年代", "period"),
    ("en", "Kilogram", "quantity"),
    ("de", "Kilogramm", "quantity"),
    ("fr", "Kilogramme", "quantity"),
    ("es", "Kilogramo", "quantity"),
    ("ja", "キログラム", "quantity"),
    ("zh", "公斤", "quantity"),
    ("en", "Seven", "cardinal"),
    ("de", "Sieben", "cardinal"),
    ("fr", "Sept", "cardinal"),
    ("es", "Siete", "cardinal"),
    ("ja", "七", "cardinal"),
    ("zh", "七", "cardinal"),
    ("en", "Monday", "date"),
    ("de", "Montag", "date"),
    ("fr", "Lundi", "date"),
    ("es", "Lunes", "date"),
    ("ja", "月曜日", "date"),
    ("zh", "星期一", "date"),
    ("fr", "100 (nombre)", "cardinal"),
    ("de", "24 Uhr", "time"),
    ("de", "50 %", "percent"),
    ("fr", "20 euros", "money"),
    ("ja", "第3", "ordinal"),
    ("en", "3rd", "ordinal"),
    ("ja", "１９８７年", "year"),
    ("en", "  1987 ", "year"),
    ("zh", "100元", "money"),
    ("en", "10 km", "quantity"),
]

STAY = [  # a work, a name, a custom: the number is not all, or not a number
    ("fr", "1984 (roman)"),
    ("en", "7 Up"),
    ("en", "12 Angry Men"),
    ("de", "99 Luftballons"),
    ("ja", "1Q84"),
    ("fr", "8½ (film)"),
    ("en", "September Song"),
    ("en", "May (surname)"),
    ("fr", "Mars"),
    ("en", "Mars"),
    ("en", "Second"),
    ("en", "Noon"),
    ("ja", "三国"),
    ("ja", "七夕"),
    ("ja", "正月"),
    ("zh", "正月十五"),
    ("zh", "五一劳动节"),
    ("zh", "双十节"),
    ("zh", "雙十節"),
    ("es", "Cinco de Mayo"),
    ("de", "Pfingstmontag"),
    ("fr", "Dix-huit heures ?"),
    ("zh", "六四"),
    ("ja", "七五三"),
    ("zh", "三八节"),
    ("es", "Quinceañera"),
    ("de", "Zwölften"),
    ("zh", "十三經"),
    ("en", "4th of July"),
    ("fr", "Mai 68"),
    ("es", "23-F"),
    ("en", "Good Friday"),
    ("de", "Heilige Drei Könige"),
    ("zh", "八仙"),
    ("ja", "第九"),
    ("ja", "千と千尋の神隠し"),
    ("en", "007"),
    ("es", "La lista de Schindler"),
    ("en", "!!!"),
    ("en", "Twelfth Night"),
    ("de", "Schwarzer Freitag"),
    ("ja", "十二単"),
    ("zh", "二十四节气"),
    ("ja", "百人一首"),
    ("zh", "九九重阳"),
]


@pytest.mark.parametrize("lang, title, reason", GO)
def test_goes(lang, title, reason):
    assert prune_reasons([title], lang) == [reason]


@pytest.mark.parametrize("lang, title", STAY)
def test_stays(lang, title):
    assert prune_reasons([title], lang) == [None]


def test_no_titles_and_empty_titles():
    assert prune_reasons([], "en") == []
    assert prune_reasons(["", " ", "\u3000"], "ja") == ["empty"] * 3


@pytest.mark.parametrize(
    "title",
    [
        "1" * 100_000,
        "a" * 100_000,
        "1 " * 50_000,
        "Liste " * 20_000,
        "(" * 50_000,
        "一" * 50_000,
        "hundertund" * 5_000,
        "Lista de " + "a" * 100_000,
    ],
)
def test_pathological_titles_end(title):
    start = time.process_time()
    for lang in SIX:
        prune_reasons([title], lang)
    assert time.process_time() - start < 5


def test_order_and_length_are_kept():
    titles = ["Tea", "1987", "", "Haka", "List of teas"]
    assert prune_reasons(titles, "en") == [None, "year", "empty", None, "list"]


def reasons_without_gate(titles: list[str], lang: str) -> list[str | None]:
    titles = [plain_title(title) for title in titles]
    by_rule = covering_labels(titles, functional_ruler(lang))

    def reason(title: str, label: str | None) -> str | None:
        if not title:
            return "empty"
        return "list" if list_title(title) else label

    return [reason(title, label) for title, label in zip(titles, by_rule)]


def wiki_titles(lang: str) -> list[str]:
    with gzip.open(DATA / "wiki" / f"{lang}.jsonl.gz", "rt", encoding="utf-8") as f:
        return [json.loads(line)["title"] for line in f]


@needs_data
@pytest.mark.parametrize("lang", SIX)
def test_the_gate_changes_nothing(lang):
    with gzip.open(DATA / "aligned" / "titles_6lang.tsv.gz", "rt", encoding="utf-8") as f:
        rows = [line.rstrip("\n").split("\t") for line in f]
    column = rows[0].index(lang)
    titles = [row[column] for row in rows[1:] if row[column]]
    with_digits = [t for t in titles if any(c.isdigit() for c in t)]
    some = random.Random(0).sample(titles, 2000)
    some += with_digits[:1000]
    some += [t for l, t, _ in GO if l == lang]
    reasons = prune_reasons(some, lang)
    assert reasons == reasons_without_gate(some, lang)
    assert {r for r in reasons if r} <= REASONS


@needs_data
def test_real_titles():
    titles = {lang: wiki_titles(lang) for lang in SIX}
    dropped = {
        lang: [t for t, r in zip(ts, prune_reasons(ts, lang)) if r]
        for lang, ts in titles.items()
    }
    assert {lang: len(ts) for lang, ts in dropped.items()} == {
        "en": 14,
        "de": 18,
        "fr": 91,
        "es": 40,
        "ja": 36,
        "zh": 7,
    }
    assert "10 de agosto" in dropped["es"]
    assert "12世紀" in dropped["ja"]
    assert "Índice de paquetes de Python" not in dropped["es"]


# A trained model


def test_a_model_drops_what_it_covers_whole(trained):
    nlp = load_ner(str(trained))
    titles = ["Olden Days", "Olden Days of Rome", "Ada Lovelace", "Tea", "1987", ""]
    assert prune_reasons(titles, "en", nlp) == ["date", None, None, None, "year", "empty"]
    assert prune_reasons(titles, "en") == [None, None, None, None, "year", "empty"]


def test_a_missing_model_says_how_to_get_it():
    with pytest.raises(OSError, match="python -m spacy download xx_absent_sm"):
        load_ner("xx_absent_sm")


def test_a_model_without_entities(tmp_path):
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(OSError, match="marks no entities"):
        load_ner(str(tmp_path / "blank"))
