"""Bad input, real dumps, and the sample: what does not belong in the corpus notebook."""

import bz2
import gzip
import html
import json
import logging
from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmining.core.basics import CorpusError, RunError
from cmining.core.engine import hold_folder
from cmining.core.scripts import clean_text, is_prose, nearest_code, split_text
from cmining.ingest import corpus, dumps, wikitext
from cmining.ingest.corpus import (
    cell_text,
    corpus_files,
    entry_id,
    read_entries,
    text_paragraphs,
    unread_files,
    write_corpus,
)
from cmining.ingest.dumps import dump_pages, ingest_source
from cmining.ingest.wikitext import careful_paragraphs, wiki_paragraphs

DUMPS = Path(__file__).parent.parent.parent / "shared" / "data" / "dumps"
WIKI = DUMPS.parent / "wiki"
needs_dumps = pytest.mark.skipif(
    not DUMPS.is_dir(),
    reason="real dumps are not beside the checkout (../shared/data/dumps)",
)
needs_wiki = pytest.mark.skipif(
    not WIKI.is_dir(),
    reason="real articles are not beside the checkout (../shared/data/wiki)",
)


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows]
    data = "".join(lines).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def page(
    title: str, text: str = "It is a thing that people know well.", ns: str = "<ns>0</ns>"
) -> str:
    return (
        f"<page><title>{html.escape(title)}</title>{ns}<id>7</id><revision><id>1</id>"
        f"<text>{html.escape(text)}</text></revision></page>\n"
    )


def dump(
    path: Path,
    pages: list[str],
    head: str = '<mediawiki xml:lang="en">',
    tail: str = "</mediawiki>",
) -> Path:
    data = (head + "".join(pages) + tail).encode()
    compress = {".bz2": bz2.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(data))
    return path


def entries_of(corpus: Path, lang: str = "en") -> list[dict]:
    return [
        entry
        for file in corpus_files(corpus)[lang]
        for entry in read_entries(file, lang, Counter())
    ]


def titles(corpus: Path, lang: str = "en") -> list[str]:
    return [entry["title"] for entry in entries_of(corpus, lang)]


# Text


@pytest.mark.parametrize(
    "dirty, clean",
    [
        ("a\x00b", "ab"),
        ("Tea\nHouse", "Tea House"),
        ("\u202eabc\u202c", "abc"),
        ("e\u0301", "é"),
        ("\ud800x", "x"),
        ("  a \t b ", "a b"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\ufeffBOM", "BOM"),
        ("", ""),
    ],
)
def test_clean_text(dirty, clean):
    assert clean_text(dirty) == clean
    assert clean_text(clean) == clean


def test_split_text_never_gives_empty_paragraphs():
    assert split_text("\n\n a \n\n\x00\n\nb\n") == ["a", "b"]


def test_entry_id_is_stable():
    assert entry_id("en", "Tea") == "96bc7ee7b2615b81"
    assert len({entry_id(l, t) for l in ("en", "de") for t in ("a", "b", "")}) == 6


# Prose of all scripts


@pytest.mark.parametrize(
    "lead",
    [
        "होली वसंत का त्योहार है।",
        "নববর্ষ একটি লোক উৎসব।",
        "پنجابی رقص ایک لوک رقص ہے۔",
        "هل تعرفها أنت حقا؟",
        "הורה היא ריקוד עם.",
        "Քոչարին հայկական պար է։",
        "ቡና ተወዳጅ መጠጥ ነው።",
        "ពិធីសែនដូនតាជាពិធីបុណ្យ។",
        "သင်္ကြန်သည် နှစ်သစ်ကူးပွဲတော် ဖြစ်သည်။",
        "ลอยกระทงเป็นประเพณีไทย",
        "བོད་ཀྱི་གཞས་ནི་རོལ་མོ་ཡིན།",
        "Хоровод — русский танец.",
        "盆踊りは夏の踊りである。",
        "పండుగ ఒక జానపద వేడుక.",
    ],
)
def test_short_leads_of_all_scripts_are_prose(lead):
    assert is_prose(lead)
    assert wiki_paragraphs(f"'''X''' {lead}")[0] == [f"X {lead}"]


@pytest.mark.parametrize(
    "no_prose", ["होली 2019", "อ้างอิง", "ការយោង", "הורה 1950", "脚注", "Eine Tasse Tee"]
)
def test_captions_of_other_scripts_are_no_prose(no_prose):
    assert not is_prose(no_prose)


# Cells of tables


class NAType:
    "As pandas.NA: asked whether it is equal to anything, it does not say."

    def __eq__(self, other):
        raise TypeError("boolean value of NA is ambiguous")


@pytest.mark.parametrize(
    "missing",
    [
        None,
        float("nan"),
        float("inf"),
        np.float64("-inf"),
        np.datetime64("NaT"),
        Decimal("NaN"),
        Decimal("sNaN"),
        pd.NA,
        pd.NaT,
        NAType(),
        "",
    ],
)
def test_missing_cells(missing):
    counts = Counter()
    assert cell_text(missing, "title", counts, is_name=True) == ""
    assert cell_text(missing, "text", counts) == ""
    assert not counts


@pytest.mark.parametrize(
    "cell, text",
    [
        ("nan", "nan"),
        (np.str_("Tea"), "Tea"),
        (b"F\xc3\xaate", "Fête"),
        (bytearray(b"Tea"), "Tea"),
        (memoryview(b"Tea"), "Tea"),
        (np.bytes_(b"Tea"), "Tea"),
        (np.array("Tea"), "Tea"),
        (1984, "1984"),
        (1984.0, "1984"),
        (2.5, "2.5"),
        (np.int64(7), "7"),
        (10**30, str(10**30)),
        (Decimal("1.50"), "1.50"),
        (date(2024, 1, 2), "2024-01-02"),
        (UUID(int=7), str(UUID(int=7))),
    ],
)
def test_cells_that_name_something(cell, text):
    counts = Counter()
    assert cell_text(cell, "id", counts, is_name=True) == text
    assert not counts


@pytest.mark.parametrize("cell", [True, np.bool_(False), ["a"], {"a": 1}, {1}, object()])
def test_cells_that_are_no_text_are_counted(cell):
    counts = Counter()
    assert cell_text(cell, "title", counts, is_name=True) == ""
    (reason,) = counts
    assert reason.startswith("title is no text but ")


def test_numbers_are_no_paragraphs():
    counts = Counter()
    assert cell_text(7, "text", counts) == ""
    assert counts == {"text is no text but int": 1}


def test_bytes_that_are_no_utf8_are_counted_in_cells():
    counts = Counter()
    assert cell_text(b"caf\xe9", "title", counts) == "caf\ufffd"
    assert counts == {"not UTF-8: characters replaced": 1}


def test_byte_columns_of_parquet(tmp_path):
    columns = {
        "id": pa.array([b"1", b"2"]),
        "title": pa.array(["Fête".encode(), b"Tea"]),
        "text": pa.array([b"A feast.\n\nIt is old.", b"A drink."]),
        "url": pa.array([b"http://x", None]),
    }
    path = tmp_path / "en.parquet"
    pq.write_table(pa.table(columns), path)
    ingest_source(path, tmp_path / "out")
    fete, tea = entries_of(tmp_path / "out")
    assert (fete["title"], fete["paragraphs"]) == ("Fête", ["A feast.", "It is old."])
    assert (fete["source_id"], fete["url"]) == ("1", "http://x")
    assert (tea["title"], tea["url"]) == ("Tea", None)


def test_missing_titles_and_ids_are_no_names(tmp_path):
    nan = "NaN"
    lines = [
        f'{{"title": {nan}, "text": "One is a text."}}\n',
        f'{{"title": {nan}, "text": "Two is a text.", "id": {nan}}}\n',
        f'{{"title": "A", "id": {nan}, "lang": {nan}, "text": {nan}, "n": {nan}}}\n',
        f'{{"title": "B", "id": {nan}, "text": "A text."}}\n',
    ]
    counts = Counter()
    entries = list(read_entries(write(tmp_path / "en.jsonl", lines), "en", counts))
    assert [e["title"] for e in entries] == ["", "", "A", "B"]
    assert [e["paragraphs"] for e in entries[2:]] == [[], ["A text."]]
    assert len({e["id"] for e in entries}) == 4
    assert entries[2]["id"] == entry_id("en", "A")
    assert entries[2]["n"] is None
    assert not counts


def test_rows_of_a_data_frame(tmp_path, caplog):
    table = pd.DataFrame(
        {
            "title": ["a", None, "c", "d", 5],
            "paragraphs": [np.array(["p q."]), ("x",), None, np.nan, [b"\xc3\xaa."]],
            "text": [None, None, "One is.\n\nTwo is.", np.nan, "not read"],
            "n": [1, np.nan, 3, 4, np.int64(5)],
            "when": pd.to_datetime(["2024-01-02", None, None, None, None]),
        }
    )
    with caplog.at_level(logging.WARNING):
        write_corpus(table.to_dict("records"), tmp_path, "en")
    assert not caplog.messages
    entries = entries_of(tmp_path)
    assert [e["title"] for e in entries] == ["a", "", "c", "d", "5"]
    texts = [e["paragraphs"] for e in entries]
    assert texts == [["p q."], ["x"], ["One is.", "Two is."], [], ["ê."]]
    assert [e["n"] for e in entries] == [1, None, 3, 4, 5]
    assert entries[0]["when"].startswith("2024-01-02")
    assert entries[1]["when"] is None


def test_write_corpus_says_what_it_mended(tmp_path, caplog):
    write_corpus([{"title": True, "text": "x is."}, {"name": "?"}], tmp_path, "en")
    assert "en: title is no text but bool (1)" in caplog.messages
    assert "en: row without title or text column (1)" in caplog.messages
    for rows in (pd.DataFrame({"title": ["a"]}), [("a", "b")]):
        with pytest.raises(CorpusError, match="to_dict"):
            write_corpus(rows, tmp_path, "en")


def test_entries_are_written_as_they_were_read(tmp_path):
    rows = [{"title": "Tea", "paragraphs": ["See also", "a"], "x": 1}, {"title": "B"}]
    source = write(tmp_path / "en.jsonl", rows)
    entries = list(read_entries(source, "en", Counter()))
    write_corpus(entries, tmp_path / "out", "en")
    assert [e["paragraphs"] for e in entries_of(tmp_path / "out")] == [
        ["See also", "a"],
        [],
    ]


def test_columns_of_rows_decide_nothing_when_they_are_missing(tmp_path):
    rows = [
        '{"title": "A", "text": "A text.", "redirect": NaN, "ns": NaN, "lang": "EN"}\n',
        '{"title": "B", "text": "A text.", "redirect": false, "ns": 0.0, "lang": "en-GB"}\n',
        '{"title": "C", "text": "A text.", "redirect": "A", "ns": 0}\n',
        '{"title": "D", "text": "A text.", "ns": 10}\n',
    ]
    got = ingest_source(write(tmp_path / "en.jsonl", rows), tmp_path / "out")
    assert titles(tmp_path / "out") == ["A", "B"]
    assert got["left_out"] == {"namespace": 1, "redirect": 1}


# Prose of plain texts

LEAD = "Tea is a drink that people know well."


@pytest.mark.parametrize(
    "rest",
    [
        "References\n\nExternal links\n\nFolk dances",
        "2006–2010: Breakthrough and debut album of the band",
        "Weblinks \n \n\nEinzelnachweise ",
        " Coffee\n List of hot drinks\n Cocoa and other hot drinks of the north",
        "* Smith, J. (2000). A book of tea. London.\n* Coffee",
        "1610 introductions\nHot drinks\nDrinks of Asia\nLeaves\nCulture of China\nBushes"
        "\nChinese inventions of old",
        "脚注\n\n関連項目",
        "参见\n参考文献",
        "อ้างอิง\n\nแหล่งข้อมูลอื่น",
        "thumb|left|A cup of tea that stands on a table.",
        "| cell || cell of a table that was never closed, with words.",
        "Examples of hot drinks are:",
        "20th-century American male film and stage actors\nAmerican people of English"
        " descent\nDrinks\nActors from the city of New York",
        "== See also ==",
    ],
)
def test_headings_and_items_of_a_text_are_no_paragraphs(rest):
    counts = Counter()
    assert text_paragraphs(f"{LEAD}\n\n{rest}", counts) == [LEAD]
    assert counts["heading or item of a list in a text"] >= 1


@pytest.mark.parametrize(
    "text, paragraphs",
    [
        ("A drink.", ["A drink."]),
        ("A drink.\n\n“It is hot!”", ["A drink.", "“It is hot!”"]),
        ("Früchte:\n\nÄpfel", ["Früchte:", "Äpfel"]),
        (f"History\n{LEAD}", [LEAD]),
        (
            f"History \n{LEAD}\nMore of it is here.\n\nEnd.",
            [f"{LEAD} More of it is here.", "End."],
        ),
        (f"歴史\n{'茶は中国から来た飲み物で、' * 5}である。", None),
        ("Roses are red,\nviolets are blue,\n\nit is.", None),
        (
            "It is the custom of the valley that each spring the\nVillage dances.\n\nIt is.",
            [
                "It is the custom of the valley that each spring the Village dances.",
                "It is.",
            ],
        ),
        ("紅茶は熱い飲み物で、とても多くの国の人に\n好まれている。\n\n茶。", None),
        ("ลอยกระทงเป็นประเพณีของชาวไทย\n\n" + LEAD, ["ลอยกระทงเป็นประเพณีของชาวไทย", LEAD]),
    ],
)
def test_what_is_short_or_wrapped_stays(text, paragraphs):
    got = text_paragraphs(text, Counter())
    if paragraphs is None:
        joined = "".join("".join(got).split())
        assert joined == "".join(text.removeprefix("歴史").split())
    else:
        assert got == paragraphs


def test_paragraphs_of_the_user_are_not_filtered(tmp_path):
    rows = [{"title": "A", "paragraphs": ["See also", LEAD, "Folk dances"]}]
    path = write(tmp_path / "en.jsonl", rows)
    (entry,) = read_entries(path, "en", Counter())
    assert entry["paragraphs"] == rows[0]["paragraphs"]
    ingest_source(path, tmp_path / "out")
    assert entries_of(tmp_path / "out")[0]["paragraphs"] == rows[0]["paragraphs"]


def test_an_article_of_headings_alone_has_no_lead(tmp_path):
    rows = [
        {"title": "A", "text": "References\n\nExternal links"},
        {"title": "B", "text": f"{LEAD}\n\nReferences"},
        {"title": "C", "text": "a single phrase"},
    ]
    got = ingest_source(write(tmp_path / "en.jsonl", rows), tmp_path / "out")
    assert got["left_out"] == {"no lead": 1}
    assert got["notes"] == {"heading or item of a list in a text": 1}
    assert titles(tmp_path / "out") == ["B", "C"]


# Corpus folders


def with_other_files_only(folder: Path) -> Path:
    write(folder / "README.md", ["x"])
    write(folder / "EN.jsonl", [])
    (folder / "en").mkdir()
    return folder


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: d / "absent", "there is nothing of that name"),
        (lambda d: write(d / "en.jsonl", []), "is a file"),
        (lambda d: d, "no file there has the right name"),
        (with_other_files_only, "no file there has the right name"),
    ],
)
def test_no_corpus(tmp_path, make, message):
    with pytest.raises(CorpusError, match=message):
        corpus_files(make(tmp_path))


def test_other_files_are_ignored(tmp_path):
    write(tmp_path / "labels.csv", ["title,label\n"])
    write(tmp_path / "manifest.json", ["{}"])
    write(tmp_path / "de" / "notes.txt", ["x"])
    path = write(tmp_path / "de" / "a.jsonl", [{"title": "a", "text": "b"}])
    assert corpus_files(tmp_path) == {"de": [path]}


def test_unread_files_are_named_with_a_way_out(tmp_path):
    for name in (
        "de.jsonl",
        "pt-BR.jsonl",
        "EN.jsonl",
        "zh_classical.jsonl.gz",
        "fr.json",
        "ja.jsonl.zst",
        "ko.parquet",
        "simple/a.jsonl",
        "es/a.parquet",
        "es/b.csv",
        "es/more/c.jsonl",
        "labels.csv",
        "manifest.json",
        "README",
        ".hidden",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "it").mkdir()
    assert list(corpus_files(tmp_path)) == ["de", "es"]
    unread = unread_files(tmp_path)
    for name, way_out in {
        "pt-BR.jsonl": "call it, for example, pt.jsonl",
        "EN.jsonl": "call it, for example, en.jsonl",
        "zh_classical.jsonl.gz": "call it, for example, lzh.jsonl.gz",
        "fr.json": "one object a line",
        "ja.jsonl.zst": "zstd -d",
        "ko.parquet": "ko/ko.parquet",
        "simple/": "call it, for example, en/",
        "es/b.csv": "pandas.read_csv",
        "es/more": "move its files into es/",
        "it/": "empty",
    }.items():
        assert way_out in unread.pop(name), name
    assert not unread


@pytest.mark.parametrize(
    "code, nearest",
    [
        ("de", "de"),
        ("EN", "en"),
        ("pt-BR", "pt"),
        ("zh_Hant_TW", "zh"),
        ("simple", "en"),
        ("be-tarask", "be"),
        ("zh_min_nan", "nan"),
        ("german", ""),
        ("../de", ""),
        ("", ""),
    ],
)
def test_nearest_code(code, nearest):
    assert nearest_code(code) == nearest


def test_a_corpus_of_unread_files_says_why(tmp_path):
    write(tmp_path / "pt-BR.jsonl", [])
    with pytest.raises(CorpusError, match="call it, for example, pt.jsonl"):
        corpus_files(tmp_path)
    with pytest.raises(CorpusError, match="lang='pt'"):
        write_corpus([], tmp_path, "pt-BR")
    with pytest.raises(CorpusError, match="lang='zh'"):
        ingest_source(write(tmp_path / "a.jsonl", []), tmp_path / "out", lang="zh-Hans")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_read(tmp_path, encoding):
    lines = (
        '{"title": "Fête", "text": "Une fête 茶."}\r\n{"title": "B", "text": "b."}\r\n'
    )
    (tmp_path / "fr.jsonl").write_bytes(lines.encode(encoding))
    counts = Counter()
    entries = list(read_entries(tmp_path / "fr.jsonl", "fr", counts))
    assert [e["title"] for e in entries] == ["Fête", "B"]
    assert entries[0]["paragraphs"] == ["Une fête 茶."]
    assert not counts


@pytest.mark.parametrize("text", ['[\n{"title": "a"}\n]', '[{"title": "a"}]', " [\n"])
def test_a_json_array_is_called_one(tmp_path, text):
    path = tmp_path / "en.jsonl"
    path.write_text(text)
    counts = Counter()
    list(read_entries(path, "en", counts))
    assert counts["one JSON array, not one object a line: en.jsonl"] == 1
    with pytest.raises(CorpusError, match="one JSON array"):
        ingest_source(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["en.jsonl.gz", "enwiki.xml.gz", "enwiki.xml.bz2"])
def test_a_plain_file_with_a_compressed_name(tmp_path, name):
    (tmp_path / name).write_text('{"title": "a", "text": "b."}')
    with pytest.raises(CorpusError, match="in spite of its name"):
        ingest_source(tmp_path / name, tmp_path / "out", lang="en")


def test_files_of_a_source_that_are_not_read_are_named(tmp_path, caplog):
    source = tmp_path / "in"
    write(source / "a.jsonl", [{"title": "a", "text": "b."}])
    (source / "b.jsonl.gz").write_text("{}")
    for name in ("c.json", "d.csv", "sub/e.jsonl.zst", "README.md", "x-index.txt.bz2"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
    got = ingest_source(source, tmp_path / "out", lang="en")
    assert list(got["unread"]) == ["c.json", "d.csv", "sub/e.jsonl.zst"]
    assert [line.split()[0] for line in caplog.messages] == list(got["unread"])
    assert any("b.jsonl.gz" in note for note in got["notes"])


def test_each_bad_row_is_counted(tmp_path):
    rows = [
        {"title": "ok", "text": "One.\n\nTwo.", "gloss_en": "fine"},
        "{broken\n",
        "[1, 2]\n",
        "[" * 100_000 + "\n",
        "\n",
        {"name": "no title"},
        {"title": None, "text": None},
        {"title": 1984, "paragraphs": ["", " ", "p", None]},
        {"title": "x\ny", "text": "t", "lang": "de", "id": 7},
    ]
    counts = Counter()
    entries = list(read_entries(write(tmp_path / "en.jsonl", rows), "en", counts))
    assert [(e["title"], e["paragraphs"]) for e in entries] == [
        ("ok", ["One.", "Two."]),
        ("", []),
        ("1984", ["p"]),
        ("x y", ["t"]),
    ]
    assert entries[0]["gloss_en"] == "fine"
    assert entries[3]["lang"] == "en"
    assert entries[3]["id"] == "7"
    assert counts == {
        "broken line": 2,
        "row is no object": 1,
        "row without title or text column": 1,
        "empty paragraph": 3,
        "lang column disagrees with the file's language": 1,
    }


def test_bytes_that_are_no_utf8(tmp_path):
    (tmp_path / "en.jsonl").write_bytes(
        b'\xef\xbb\xbf{"title": "caf\xe9", "text": "t"}\n'
    )
    counts = Counter()
    (entry,) = read_entries(tmp_path / "en.jsonl", "en", counts)
    assert entry["title"] == "caf\ufffd"
    assert counts == {"not UTF-8: characters replaced": 1}


def test_truncated_gzip_keeps_what_is_whole(tmp_path):
    rows = [
        {"title": entry_id("en", str(i)), "text": entry_id("de", str(i))}
        for i in range(20_000)
    ]
    path = write(tmp_path / "en.jsonl.gz", rows)
    path.write_bytes(path.read_bytes()[:-5000])
    counts = Counter()
    n = sum(1 for _ in read_entries(path, "en", counts))
    assert 15_000 < n < 20_000
    assert counts == {"file cut off: en.jsonl.gz": 1}


def test_parquet(tmp_path):
    columns = {
        "id": [1, 2],
        "title": ["a", None],
        "text": ["x\n\ny", "z"],
        "source": ["s", "t"],
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    first, second = read_entries(tmp_path / "p.parquet", "en", Counter())
    assert (first["title"], first["paragraphs"], first["source"]) == (
        "a",
        ["x", "y"],
        "s",
    )
    assert (second["title"], second["paragraphs"], second["source"]) == ("", ["z"], "t")


def test_parquet_with_paragraphs(tmp_path):
    columns = {"title": ["a"], "paragraphs": [["x", ""]]}
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    (entry,) = read_entries(tmp_path / "q.parquet", "en", Counter())
    assert entry["paragraphs"] == ["x"]


@pytest.mark.parametrize(
    "data", [b"", b"PAR1 no parquet", b"PAR1" + b"\0" * 64 + b"PAR1"]
)
def test_broken_parquet_names_the_file(tmp_path, data):
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(CorpusError, match="x.parquet"):
        list(read_entries(tmp_path / "x.parquet", "en", Counter()))


def test_hostile_language_never_becomes_a_path(tmp_path):
    for lang in ("../x", "", "EN", "e", "german", "en/"):
        with pytest.raises(CorpusError):
            write_corpus([], tmp_path, lang)


def test_a_failed_write_leaves_the_old_corpus(tmp_path):
    write_corpus([{"title": "old"}], tmp_path, "en")

    def fails():
        yield {"title": "new"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(fails(), tmp_path, "en", shard_size=1)
    assert titles(tmp_path) == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["en"]


# Dumps


@pytest.mark.parametrize("name", ["d.xml", "d.xml.gz", "d.xml.bz2"])
def test_pages_of_a_dump(tmp_path, name):
    path = dump(tmp_path / name, [page("A & B"), page("C")])
    got = ingest_source(path, tmp_path / "out")
    assert got["lang"] == "en"
    assert (got["read"], got["kept"], got["left_out"]) == (2, 2, {})
    assert titles(tmp_path / "out") == ["A & B", "C"]


def test_prefixed_tags_and_missing_end_tag(tmp_path):
    prefixed = (
        page("A")
        .replace("<", "<ns0:")
        .replace("<ns0:/", "</ns0:")
        .replace("<ns0:page>", '<ns0:page xmlns:ns0="http://x/">')
    )
    path = dump(tmp_path / "d.xml", [prefixed, page("B")], tail="")
    assert [p["title"] for p in dump_pages(path, Counter(), [])] == ["A", "B"]


@pytest.mark.parametrize(
    "bad",
    [
        "<page><title>Salt & Pepper</title></page>",
        "<page><title>\x0b</title></page>",
        "<page><ti</page>",
        "<page>&undefined;</page>",
    ],
)
def test_a_broken_page_costs_that_page_only(tmp_path, bad):
    got = ingest_source(
        dump(tmp_path / "d.xml", [page("A"), bad, page("B")]), tmp_path / "out"
    )
    assert got["left_out"] == {"broken page": 1}
    assert got["breaks"][0]["file"] == "d.xml"
    assert got["breaks"][0]["byte"] > 0
    assert titles(tmp_path / "out") == ["A", "B"]


@pytest.mark.parametrize(
    "name, cut", [("d.xml", 40), ("d.xml.gz", 3000), ("d.xml.bz2", 3000)]
)
def test_truncated_dump_keeps_what_is_whole(tmp_path, name, cut):
    pages = []
    for i in range(9000):
        noise = " ".join(entry_id(lang, str(i)) for lang in "abcdefgh")
        pages.append(page(entry_id("en", str(i)), f"{noise} is a text with words."))
    path = dump(tmp_path / name, pages)
    path.write_bytes(path.read_bytes()[:-cut])
    got = ingest_source(path, tmp_path / "out")
    assert 3000 < got["kept"] < 9001
    assert got["breaks"]
    assert got["read"] == got["kept"] + sum(got["left_out"].values())


@pytest.mark.parametrize(
    "name, data",
    [
        ("d.xml", b""),
        ("d.xml", b"<html><body>no</body></html>"),
        ("d.xml.bz2", b"no bz2 at all"),
        ("d.xml.gz", b"\x1f\x8bbroken"),
        ("d.xml", b"\0" * 1000),
        ("d.xml", b"<page><title>never closed"),
    ],
)
def test_no_dump(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match="no MediaWiki dump"):
        ingest_source(tmp_path / name, tmp_path / "out", lang="en")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_entity_bomb_is_a_broken_page(tmp_path):
    head = (
        '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><mediawiki'
        ' xml:lang="en">'
    )
    bomb = page("A").replace("It is", "&b;")
    path = dump(tmp_path / "d.xml", [bomb, page("B")], head=head)
    got = ingest_source(path, tmp_path / "out")
    assert got["kept"] == 1
    assert got["left_out"] == {"broken page": 1}


@pytest.mark.parametrize(
    "title, text, ns, reason",
    [
        ("A", "#REDIRECT [[B]]", "<ns>0</ns>", "redirect"),
        ("A", "#weiterleitung [[B]]", "<ns>0</ns>", "redirect"),
        ("A", "text", "<ns>0</ns><redirect title='B'/>", "redirect"),
        ("A", "{{Begriffsklärung}}", "<ns>0</ns>", "disambiguation"),
        ("A", "'''A''' may be:\n* B\n{{hndis|A}}", "<ns>0</ns>", "disambiguation"),
        ("A (曖昧さ回避)", "t", "<ns>0</ns>", "disambiguation"),
        ("List of As", "text", "<ns>0</ns>", "list"),
        ("A", "\n".join(f"* [[Place {i}]]" for i in range(9)), "<ns>0</ns>", "list"),
        ("Talk:A", "t", "<ns>1</ns>", "namespace"),
        ("A", "t", "<ns>10</ns>", "namespace"),
        ("Kategorie:A", "t", "", "namespace"),
        ("A", "{{Infobox|x=1}}", "<ns>0</ns>", "no lead"),
        ("A", " ", "<ns>0</ns>", "empty page"),
        ("\u200e", "t", "<ns>0</ns>", "no title"),
    ],
)
def test_what_is_left_out_is_counted(tmp_path, title, text, ns, reason):
    path = dump(tmp_path / "d.xml", [page(title, text, ns), page("Kept")])
    got = ingest_source(path, tmp_path / "out")
    assert got["left_out"] == {reason: 1}
    assert titles(tmp_path / "out") == ["Kept"]


@pytest.mark.parametrize(
    "title",
    [
        "Shop Talk: Conversations",
        "Discussion of the Method: An Approach",
        "Bild: The Picture",
        "Draft:The Game",
        "Help!: An Album",
        "User talk: A Play",
        "Portal:Two",
        "帮助:一部电影",
    ],
)
def test_the_number_of_a_namespace_decides(tmp_path, title):
    got = ingest_source(dump(tmp_path / "d.xml", [page(title)]), tmp_path / "out")
    assert got["left_out"] == {}
    assert titles(tmp_path / "out") == [title]


@pytest.mark.parametrize(
    "title, is_kept",
    [("Draft: The Game", True), ("Shop Talk: A Book", True), ("Template:Tea", False)],
)
def test_without_a_number_the_title_decides(tmp_path, title, is_kept):
    rows = [{"title": title, "text": LEAD}, {"title": "Kept", "text": LEAD}]
    ingest_source(write(tmp_path / "en.jsonl", rows), tmp_path / "out")
    assert (title in titles(tmp_path / "out")) == is_kept


def revision(year: int | None, text: str, attributes: str = "") -> str:
    stamp = f"<timestamp>{year}-05-01T00:00:00Z</timestamp>" if year else ""
    return f"<revision>{stamp}<text{attributes}>{text}</text></revision>"


@pytest.mark.parametrize(
    "revisions",
    [
        [revision(2004, "Old stub."), revision(2024, LEAD)],
        [revision(2024, LEAD), revision(2004, "Old stub.")],
        [revision(2004, "a"), revision(2024, LEAD), revision(2014, "b")],
        [revision(None, "Old stub."), revision(None, LEAD)],
        [revision(None, "Old stub."), revision(2024, LEAD)],
        [revision(2024, "Old stub."), revision(2024, LEAD)],
        [revision(2023, LEAD), revision(2024, "", ' deleted="deleted"')],
        [revision(None, LEAD)],
    ],
)
def test_the_newest_revision_is_the_article(tmp_path, revisions):
    history = f"<page><title>Tea</title><ns>0</ns>{''.join(revisions)}</page>"
    ingest_source(dump(tmp_path / "d.xml", [history]), tmp_path / "out")
    (entry,) = entries_of(tmp_path / "out")
    assert entry["paragraphs"] == [LEAD]


def numbered_revision(number: int, text: str, stamp: str = "") -> str:
    return f"<revision><id>{number}</id>{stamp}<text>{text}</text></revision>"


@pytest.mark.parametrize("stamp", ["", "<timestamp>2024-05-01T00:00:00Z</timestamp>"])
def test_of_revisions_of_one_time_that_with_the_largest_number(tmp_path, stamp):
    revisions = numbered_revision(20, LEAD, stamp) + numbered_revision(3, "Old.", stamp)
    history = f"<page><title>Tea</title><ns>0</ns>{revisions}</page>"
    ingest_source(dump(tmp_path / "d.xml", [history]), tmp_path / "out")
    (entry,) = entries_of(tmp_path / "out")
    assert entry["paragraphs"] == [LEAD]


@pytest.mark.parametrize(
    "column, article, other",
    [
        ("ns", 0, 14),
        ("namespace", "0", "14"),
        ("page_namespace", 0.0, 1.0),
        ("namespace", {"identifier": 0, "name": "Article"}, {"identifier": 4}),
    ],
)
def test_rows_that_name_their_namespace(tmp_path, column, article, other):
    rows = [
        {"title": "Portal:Two", "text": LEAD, column: article},
        {"title": "Tea", "text": LEAD, column: other},
    ]
    got = ingest_source(write(tmp_path / "en.jsonl", rows), tmp_path / "out")
    assert got["left_out"] == {"namespace": 1}
    assert titles(tmp_path / "out") == ["Portal:Two"]


def test_a_language_of_a_corpus_has_one_writer(tmp_path):
    source = write(tmp_path / "en.jsonl", [{"title": "Tea", "text": LEAD}])
    (tmp_path / "out" / "en").mkdir(parents=True)
    with hold_folder(tmp_path / "out" / "en"):
        with pytest.raises(RunError, match="in use by process"):
            ingest_source(source, tmp_path / "out")
        ingest_source(source, tmp_path / "out", lang="fr")  # another language
    ingest_source(source, tmp_path / "out")
    assert titles(tmp_path / "out") == ["Tea"]


def test_nothing_is_left_of_a_source_without_an_entry(tmp_path):
    source = write(tmp_path / "en.jsonl", [{"title": "", "text": LEAD}])
    with pytest.raises(CorpusError, match="no title"):
        ingest_source(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("text", ["[]", "7", "{", "[" * 100_000])
def test_a_broken_manifest_is_told_before_the_source_is_read(tmp_path, text):
    source = write(tmp_path / "en.jsonl", [{"title": "Tea", "text": LEAD}])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(text)
    with pytest.raises(CorpusError, match="is no manifest"):
        ingest_source(source, tmp_path / "out")
    assert not (tmp_path / "out" / "en").exists()


@pytest.mark.parametrize(
    "markup, shown",
    [
        ("-{zh-hans:[[某地|甲名]];zh-hant:[[某地|乙名]]}-", "甲名"),
        ("-{zh-cn:{{lang|zh|丙名}};zh-tw:{{lang|zh|丁名}}}-", "丙名"),
        ("-{zh-hans|乙名}-", "乙名"),
        ("-{zh-hans;zh-cn|乙名}-", "乙名"),
        ("-{[[DHT公司|丁名]]}-", "丁名"),
        ("-{R|zh-hans:原文}-", "zh-hans:原文"),
        ("-{A|zh-cn:甲;zh-tw:乙}-", "甲"),
        ("-{T|zh-cn:甲;zh-tw:乙}-", ""),
        ("-{H|zh-cn:甲;zh-tw:乙}-", ""),
        ("-{-|zh-cn:甲;zh-tw:乙}-", ""),
        ("-{ zh-tw : 乙 ; zh-hk : 丙 ; }-", "乙"),
        ("-{zh-sg:甲;zh-tw:乙}-", "甲"),
        ("-{甲=>zh-cn:乙;丙=>zh-tw:丁}-", "乙"),
        ("-{无|甲}-", "甲"),
        ("-{zh-cn:甲&nbsp;乙;zh-tw:丙}-", "甲 乙"),
        ("-{zh-cn:甲-{zh-cn:乙;zh-tw:丙}-;zh-tw:丁}-", "甲乙"),
        ("-{sr-ec:игра; sr-el:igra}-", "игра"),
        ("-{时间 12:30; 地点}-", "时间 12:30; 地点"),
    ],
)
def test_variant_markup_of_the_lead(markup, shown):
    text = f"前文{markup}后文是一个很长很长的句子。"
    for read in (wiki_paragraphs, careful_paragraphs):
        assert read(text)[0] == [f"前文{shown}后文是一个很长很长的句子。"]


@pytest.mark.parametrize(
    "template, shown",
    [
        ("{{langx|de|Tanzfest}}", "Tanzfest"),
        ("{{langx|uk|танок|tanok}}", "танок"),
        ("{{langx|de|label=none|Tanzfest}}", "Tanzfest"),
        ("{{Lang|1=ja|2=踊り}}", "踊り"),
        ("{{読み仮名_ruby不使用|星踊り|ほしおどり}}", "星踊り"),
        ("{{読み仮名|星踊り|ほしおどり}}", "星踊り"),
        ("{{circa|1650}}", "c. 1650"),
        ("{{circa|1650|1700}}", "c. 1650–1700"),
        ("{{zh|c=盂蘭盆舞|p=yúlánpén}}", "盂蘭盆舞, yúlánpén"),
        ("{{zh|s=汉舞|t=漢舞|labels=no}}", "漢舞, 汉舞"),
        ("{{Korean|hangul=봉오도리|hanja=[[춤|舞]]}}", "봉오도리, 舞"),
        ("{{nihongo|Bon|盆|bon}}", "Bon (盆, bon)"),
        ("{{nihongo||盆|bon}}", "盆, bon"),
        ("{{nihongo3|Bon|盆|bon}}", "bon (盆, Bon)"),
        ("{{tlit|ar|dabke}}", "dabke"),
        ("{{Lien|langue=en|trad=Dance|fr=Danse}}", "Danse"),
        ("{{template:lang|ja|踊り}}", "踊り"),
        ("{{color|red|rot}}", "rot"),
        ("{{MS明朝フォント|龍}}", "龍"),
        ("{{ko-hhrm|춤|舞}}", "춤, 舞"),
        ("{{jpn|j=踊り|rm=odori}}", "踊り, odori"),
        ("{{linktext|lang=ja|盆|踊り}}", "盆踊り"),
        ("{{ill|Dance|de|Tanz}}", "Dance"),
        ("{{ill|Dance|de|Tanz|lt=the dance}}", "the dance"),
        ("{{仮リンク|A|en|B|label=C}}", "C"),
        ("{{langr|fr|bal}}", "bal"),
        ("{{b.|1650}}", "b. 1650"),
        ("{{gloss|dance}}", "dance"),
    ],
)
def test_words_of_templates(template, shown):
    text = f"A dance ''{template}'' of the valley, held by all."
    for read in (wiki_paragraphs, careful_paragraphs):
        assert read(text)[0] == [f"A dance {shown} of the valley, held by all."]


def test_bold_that_shows_nothing_leaves_no_apostrophe():
    text = "'''{{unknown name|x}}''' A dance of the valley, held by all."
    for read in (wiki_paragraphs, careful_paragraphs):
        assert read(text)[0] == ["A dance of the valley, held by all."]


@pytest.mark.parametrize("sample", [None, 3])
def test_unknown_templates_of_leads_are_counted(tmp_path, sample):
    leads = [
        "{{Infobox|a={{inner}} b}}\n'''A''' ({{native new|ja|踊り}}) is a dance of all.",
        "A dance, {{native_new|踊り}}<ref>{{cite book|x}}</ref>{{sfn|A}}, of {{other}} all.",
        "A dance of all {{lang|ja|踊り}}.\n\n{{navigation}}\n== History ==\nSo {{late}} it is.",
    ]
    pages = [page(f"Dance {i}", lead) for i, lead in enumerate(leads)]
    got = ingest_source(dump(tmp_path / "d.xml", pages), tmp_path / "out", sample=sample)
    assert got["unknown_templates"] == {"native new": 2, "other": 1}


@pytest.mark.parametrize(
    "markup",
    [
        "{{Infobox\n|a={{b|c=[[d]]}}\n}}",
        "[[File:a.jpg|thumb|A caption is a sentence, too, with [[links]].]]",
        "[[Datei:a.jpg|mini|Eine Bildunterschrift ist auch ein Satz.]]",
        ":''For the film that was made of it, see [[Film]].''",
        "''Dieser Artikel behandelt das Ding. Zum Film siehe dort.''",
        "{| class=x\n! Head\n|-\n| A cell can hold a sentence of words.\n|}",
        "<!-- A comment may be a whole sentence of words. -->",
        "<gallery>\nA.jpg|This is a sentence in a gallery.\n</gallery>",
        "<div class='notice'>This page needs work, please help us.</div>",
        "{{Infobox\n| name = never closed, with a sentence of words.\n",
        "{|\n| a table never closed, with a sentence of words.\n",
        "== A heading made of several words. ==",
        "__NOTOC__",
        "[[Kategorie:Dinge]]\n[[en:Thing]]",
        "* An item of a list may be a sentence too.",
        "<ref>A reference is a sentence with words.</ref>",
        "{{Coord|52|31|N}}",
        "<timeline>\nA = This is a sentence of a timeline.\n</timeline>",
    ],
)
def test_the_lead_is_none_of_these(markup):
    lead = "'''It''' is the [[lead]], a sentence.<ref>r</ref>"
    more = "And more of it follows here."
    paragraphs, _ = wiki_paragraphs(f"{markup}\n\n{lead}\n\n{more}")
    assert paragraphs == ["It is the lead, a sentence.", more]


@pytest.mark.parametrize(
    "text, lead",
    [
        (
            "Born {{date|14|juillet|1789}} in {{lang|fr|Paris}}, he was"
            " {{convert|180|cm}} tall.",
            "Born 14 juillet 1789 in Paris, he was 180 cm tall.",
        ),
        (
            "Au {{s|XIX|e}}, elle ({{API|x}}) est une ville.",
            "Au XIXe siècle, elle est une ville.",
        ),
        (
            "It is a [[link|word]]&nbsp;of <math>n</math> and"
            " <math>\\frac{a}{b}</math> parts.",
            "It is a word of n and parts.",
        ),
        (
            "-{zh-hans:软件;zh-hant:軟體}-是一系列按照特定顺序组织的数据和指令。",
            "软件是一系列按照特定顺序组织的数据和指令。",
        ),
        (
            "L'''eau'' est <nowiki>[[x]]</nowiki> un liquide [http://x.org connu] de"
            " tous.",
            "L'eau est x un liquide connu de tous.",
        ),
    ],
)
def test_words_within_a_lead(text, lead):
    assert wiki_paragraphs(text)[0] == [lead]


@pytest.mark.parametrize(
    "text",
    [
        "{{" * 20_000,
        "[[" * 20_000,
        "{|\n" * 5_000,
        "<b>" * 5_000,
        "''" * 50_001,
        "-{" * 20_000,
        "(" * 50_000,
        "\n" * 100_000,
        "* " * 50_000,
    ],
)
def test_pathological_markup_ends(text):
    assert wiki_paragraphs(text)[0] == []


@pytest.mark.parametrize(
    "text",
    [
        "{{a|" * 50_000 + "}}" * 50_000,
        "-{" * 50_000 + "}-" * 50_000,
        "-{" + "[[" * 50_000 + "}-" * 50_000,
        "-{" + ";zh-cn:" * 50_000 + "}-",
        "<ref>" * 50_000,
        "</ref>" * 50_000 + "<ref>" * 50_000,
        "<!--" * 50_000,
        "<ref>a</ref" * 50_000,
        "[[a|" * 50_000 + "]]" * 50_000,
        "<div>" * 50_000 + "</div>" * 50_000,
        "[http://" * 50_000,
        "= " * 99_000,
        "{{{" * 50_000,
        "{|\n" * 50_000 + "|}\n" * 50_000,
        "{{lang|ja|" * 50_000,
        "http://" * 50_000,
        "<small>" * 50_000,
        "-" * 99_000,
    ],
)
def test_the_fast_way_never_takes_long_to_give_up(text, monkeypatch):
    # what it hands over is not its own time
    monkeypatch.setattr(wikitext, "render", lambda s: "")
    paragraphs, _ = wiki_paragraphs(text + "\n\nThis is a sentence of words.")
    assert paragraphs[-1:] in ([], ["This is a sentence of words."])


# Parts and processes


COUNTS = ("read", "articles", "kept", "left_out", "notes", "sample", "max_paragraphs")


def stored(out: Path) -> dict[str, bytes]:
    "The bytes of each file of a corpus but its manifest."
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def counted(record: dict) -> dict:
    return {name: record[name] for name in COUNTS}


def set_part_bytes(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(corpus, "PART_BYTES", n)
    monkeypatch.setattr(dumps, "PART_BYTES", n)


PAGES = [
    page(
        f"Thing {i % 280}",
        f"It is thing number {i} that people know well." if i % 5 else "{{stub}}",
    )
    for i in range(300)
]
PAGES[50:50] = [
    page("List of things"),
    page("Talk:A", ns="<ns>1</ns>"),
    "<page><title>&broken</title></page>",
]


def streams(path: Path, size: int = 10) -> Path:
    """A dump as Wikipedia packs it.

    One bzip2 stream is for the head, one each for some pages, one for the end.
    """
    whole = [
        '<mediawiki xml:lang="en">',
        *("".join(PAGES[i : i + size]) for i in range(0, len(PAGES), size)),
        "</mediawiki>",
    ]
    path.write_bytes(b"".join(bz2.compress(w.encode()) for w in whole))
    return path


@pytest.mark.parametrize("sample", [None, 40])
def test_same_bytes_whatever_the_parts_and_processes(tmp_path, monkeypatch, sample):
    multi = streams(tmp_path / "multi.xml.bz2")
    (tmp_path / "multi-index.txt.bz2").write_bytes(bz2.compress(b"this is not read"))
    text = bz2.decompress(multi.read_bytes())
    for name in ("one.xml.bz2", "one.xml.gz"):
        (tmp_path / name).write_bytes(
            (bz2 if name.endswith("bz2") else gzip).compress(text)
        )
    # streams cut in mid-page
    (tmp_path / "odd.xml.bz2").write_bytes(
        b"".join(bz2.compress(text[i : i + 5000]) for i in range(0, len(text), 5000))
    )
    first = ingest_source(multi, tmp_path / "first", sample=sample)
    assert first["left_out"]["broken page"] == 1
    assert first["kept"] == (sample or 224)
    assert first["articles"] == 300
    for part, name, jobs in [
        (300, "multi.xml.bz2", 2),
        (300, "multi.xml.bz2", 1),
        (1000, "odd.xml.bz2", 1),
        (1000, "one.xml.bz2", 2),
        (1000, "one.xml.gz", 1),
    ]:
        set_part_bytes(monkeypatch, part)
        got = ingest_source(tmp_path / name, tmp_path / "out", sample=sample, jobs=jobs)
        how = (part, name, jobs)
        assert counted(got) == counted(first), how
        assert stored(tmp_path / "out") == stored(tmp_path / "first"), how
        breaks = got["breaks"]
        assert [b["what"] for b in breaks] == [b["what"] for b in first["breaks"]]
        assert breaks[0]["byte"] == first["breaks"][0]["byte"]


def test_multistream_is_read_in_parts(tmp_path, monkeypatch):
    path = streams(tmp_path / "multi.xml.bz2")
    set_part_bytes(monkeypatch, 300)
    parts = list(dumps._xml_parts(path))
    assert len(parts) > 10
    assert parts[0].start == 0
    assert all(part.stop == after.start for part, after in zip(parts, parts[1:]))
    assert parts[-1].stop == path.stat().st_size


def test_one_stream_is_unpacked_first(tmp_path, monkeypatch):
    path = streams(tmp_path / "multi.xml.bz2")
    path.write_bytes(bz2.compress(bz2.decompress(path.read_bytes())))
    set_part_bytes(monkeypatch, 300)
    parts = list(dumps._xml_parts(path))
    assert len(parts) > 10
    assert not any(part.stop for part in parts)


def test_a_broken_stream_costs_that_part_only(tmp_path, monkeypatch):
    path = streams(tmp_path / "multi.xml.bz2")
    data = bytearray(path.read_bytes())
    middle = data.index(b"BZh9", len(data) // 2) + 60
    data[middle : middle + 20] = bytes(20)
    path.write_bytes(data)
    set_part_bytes(monkeypatch, 300)
    got = ingest_source(path, tmp_path / "out")
    assert 250 < got["read"] < 303
    assert "Invalid data stream" in [b["what"] for b in got["breaks"]]


def test_max_paragraphs(tmp_path):
    text = "\n\n".join(
        f"This is the paragraph with number {i} of the text." for i in range(9)
    )
    for source in (
        dump(tmp_path / "d.xml", [page("A", text)]),
        write(tmp_path / "en.jsonl", [{"title": "A", "text": text}]),
    ):
        got = ingest_source(source, tmp_path / "out", max_paragraphs=3)
        assert got["max_paragraphs"] == 3
        assert got["notes"] == {"read up to paragraph 3": 1}
        (entry,) = entries_of(tmp_path / "out")
        assert len(entry["paragraphs"]) == 3


# Other sources and shards


def cirrus(path: Path, docs: list[dict]) -> Path:
    rows = []
    for i, document in enumerate(docs):
        rows += [{"index": {"_type": "page", "_id": str(i)}}, document]
    return write(path, rows)


@pytest.mark.parametrize("part", [100, 1 << 22])
def test_search_dump(tmp_path, monkeypatch, part):
    set_part_bytes(monkeypatch, part)
    source = cirrus(
        tmp_path / "dewiki-20240101-cirrussearch-content.json.gz",
        [
            {
                "title": "Tee",
                "namespace": 0,
                "opening_text": "Tee ist ein Getränk.",
                "text": "Tee ist ein Getränk. Er ist heiß.",
                "wiki": "dewiki",
            },
            {"title": "Diskussion:Tee", "namespace": 1, "text": "x"},
            {
                "title": "Assam",
                "namespace": 0,
                "opening_text": None,
                "text": "Assam liegt in Indien.",
            },
            {
                "title": "Ast",
                "namespace": 0,
                "text": "Ast steht für:",
                "template": ["Vorlage:Begriffsklärung"],
            },
            {"title": "Leer", "namespace": 0, "text": ""},
            {"title": "Liste der Tees", "namespace": 0, "text": "Assam."},
            {"title": 7, "namespace": 0, "text": ["?"], "opening_text": {}},
        ],
    )
    got = ingest_source(source, tmp_path / "out")
    assert (got["lang"], got["read"], got["left_out"]) == (
        "de",
        7,
        {"disambiguation": 1, "empty page": 2, "list": 1, "namespace": 1},
    )
    tee, assam = entries_of(tmp_path / "out", "de")
    assert (tee["title"], tee["page_id"]) == ("Tee", "0")
    assert tee["paragraphs"] == ["Tee ist ein Getränk.", "Er ist heiß."]
    assert (assam["title"], assam["page_id"]) == ("Assam", "2")
    assert assam["paragraphs"] == ["Assam liegt in Indien."]


def test_cut_off_search_dump(tmp_path):
    documents = [
        {"title": entry_id("en", str(i)), "namespace": 0, "text": entry_id("de", str(i))}
        for i in range(5000)
    ]
    source = cirrus(tmp_path / "x-cirrussearch-content.json.gz", documents)
    source.write_bytes(source.read_bytes()[:-999])
    got = ingest_source(source, tmp_path / "out", lang="en")
    assert 4000 < got["kept"] < 5000
    assert got["notes"] == {f"file cut off: {source.name}": 1}


def test_columns_of_other_people(tmp_path):
    rows = [
        {
            "title": "a",
            "text": "t",
            "n": 1,
            "mixed": 1,
            "o": {},
            "big": 2**80,
            "half": "\ud800",
            "ns": 0,
        },
        {"title": "b", "text": "t", "mixed": "x", "tags": ["y"]},
    ]
    ingest_source(write(tmp_path / "en.jsonl", rows), tmp_path / "out")
    a, b = entries_of(tmp_path / "out")
    assert (a["n"], b["n"]) == (1, None)
    assert (a["mixed"], b["mixed"]) == ("1", '"x"')
    assert a["o"] == "{}"
    assert a["big"] == str(2**80)
    assert a["half"] == "?"
    assert b["tags"] == ["y"]


def test_more_columns_than_a_table_should_have(tmp_path):
    rows = [{"title": f"t{i}", "text": "t", f"column {i}": i} for i in range(150)]
    ingest_source(write(tmp_path / "many.jsonl", rows), tmp_path / "out", lang="en")
    first = entries_of(tmp_path / "out")[0]
    assert json.loads(first["extra"]) == {"column 0": 0}


def test_shards_of_earlier_versions_are_replaced(tmp_path):
    write(tmp_path / "en" / "00000.jsonl.gz", [{"title": "old"}])
    write(tmp_path / "en" / "mine.jsonl", [{"title": "mine"}])
    write_corpus([{"title": "new"}], tmp_path, "en")
    assert titles(tmp_path) == ["new", "mine"]


# Ingest: languages, samples, manifests


def test_language_must_be_said_once(tmp_path):
    out = tmp_path / "out"
    silent = dump(tmp_path / "pages.xml", [page("A")], head="<mediawiki>")
    with pytest.raises(CorpusError, match="lang='de'"):
        ingest_source(silent, out)
    torn = dump(tmp_path / "dewiki-1.xml", [page("A")])
    with pytest.raises(CorpusError, match="several languages .de, en."):
        ingest_source(torn, out)
    assert ingest_source(torn, out, lang="de")["kept"] == 1
    with pytest.raises(CorpusError, match="no code"):
        ingest_source(torn, out, lang="../de")


def test_jsonl_and_parquet_sources(tmp_path):
    rows = [
        {"id": "12", "title": "a", "text": "One.\n\nTwo."},
        {"title": "a", "text": "again"},
        {"title": "List of a", "text": "t"},
        {"title": "b", "text": "t", "lang": "de"},
        "{broken\n",
        {"title": "", "text": "t"},
    ]
    got = ingest_source(write(tmp_path / "src" / "en.jsonl.gz", rows), tmp_path / "out")
    assert (got["kept"], got["read"]) == (1, 6)
    assert got["left_out"] == {
        "broken line": 1,
        "duplicate title": 1,
        "list": 1,
        "no title": 1,
        "other language": 1,
    }
    (entry,) = entries_of(tmp_path / "out")
    assert entry["id"] == entry_id("en", "a")
    assert entry["source_id"] == "12"

    french = tmp_path / "hf" / "20231101.fr" / "train-00000-of-00001.parquet"
    french.parent.mkdir(parents=True)
    columns = {"id": ["1"], "title": ["Thé"], "text": ["Une boisson."]}
    pq.write_table(pa.table(columns), french)
    assert ingest_source(tmp_path / "hf", tmp_path / "out")["lang"] == "fr"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert sorted(manifest) == ["en", "fr"]
    assert manifest["en"]["files"][0]["name"] == "en.jsonl.gz"
    assert str(tmp_path) not in json.dumps(manifest)


def test_nothing_to_ingest(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, message in [
        (tmp_path / "absent", "nothing of that name"),
        (tmp_path / "empty", "Nothing to ingest"),
        (write(tmp_path / "x.csv", ["a"]), "Nothing to ingest"),
        (write(tmp_path / "en.jsonl", []), "No entry in"),
        (dump(tmp_path / "r.xml", [page("A", "#REDIRECT [[B]]")]), "redirect"),
    ]:
        with pytest.raises(CorpusError, match=message):
            ingest_source(source, tmp_path / "out", lang="en")
    with pytest.raises(CorpusError, match="ask for 1 or more"):
        ingest_source(tmp_path / "en.jsonl", tmp_path / "out", sample=0)


def test_unwritable_output(tmp_path):
    path = dump(tmp_path / "d.xml", [page("A")])
    with pytest.raises(CorpusError, match="Cannot write"):
        ingest_source(path, path / "below a file")


def test_sample_is_fair_fixed_and_independent_of_order(tmp_path):
    names = [f"Thing {i}" for i in range(400)]
    forward = dump(tmp_path / "a.xml", [page(name) for name in names])
    backward = dump(tmp_path / "b.xml", [page(name) for name in names[::-1]])

    def draw(source, **how):
        ingest_source(source, tmp_path / "out", **how)
        return titles(tmp_path / "out")

    first = draw(forward, sample=40, seed=1)
    assert len(first) == 40
    assert first == draw(backward, sample=40, seed=1)
    assert set(first) != set(draw(forward, sample=40, seed=2))
    assert set(first) < set(draw(forward, sample=200, seed=1))
    assert len(draw(forward, sample=999)) == 400

    hits = Counter()
    for seed in range(30):
        hits.update(draw(forward, sample=40, seed=seed))
    assert len(hits) > 370
    share_of_first_half = sum(hits[name] for name in names[:200]) / 1200
    assert share_of_first_half == pytest.approx(0.5, abs=0.06)


def test_sample_writes_the_same_bytes_whatever_the_files(tmp_path):
    rows = [{"title": f"t{i}", "text": f"text {i}"} for i in range(300)]
    rows.append({"title": "t7", "text": "another t7"})
    write(tmp_path / "one" / "x.jsonl", rows)
    write(tmp_path / "two" / "b.jsonl", rows[:100])
    write(tmp_path / "two" / "a.jsonl.gz", rows[:99:-1])
    for name in ("one", "two"):
        ingest_source(tmp_path / name, tmp_path / f"out-{name}", lang="en", sample=300)
    shards = [tmp_path / f"out-{name}/en/00000.parquet" for name in ("one", "two")]
    assert shards[0].read_bytes() == shards[1].read_bytes()


# Real data

REAL = {  # file: pages read, entries kept
    "de/dbpedia-minidump-de.xml.bz2": (2, 2),
    "de/ids-dewiki-20170701-sample.xml.gz": (79, 17),
    "en/dbpedia-minidump-en.xml.bz2": (27, 23),
    "en/gensim-enwiki-shortened.xml.bz2": (206, 96),
    "es/dbpedia-minidump-es.xml.bz2": (1, 1),
    "fr/dbpedia-minidump-fr.xml.bz2": (3, 3),
    "fr/medjkoune-corpusfile.xml.gz": (38, 14),
    "fr/medjkoune-frwiki10000.xml.gz": (22, 21),
    "fr/medjkoune-wiki_musique.xml.gz": (14, 14),
    "fr/soniad-frwiki10000.xml.gz": (22, 20),
    "ja/dbpedia-minidump-ja.xml.bz2": (1, 1),
    "zh/dbpedia-minidump-zh.xml.bz2": (1, 1),
}

MARKUP = ("{{", "}}", "[[", "]]", "{|", "|}", "thumb|", "<ref", "&nbsp;", "''")


@needs_dumps
@pytest.mark.parametrize("name", REAL)
def test_real_dumps(tmp_path, name):
    got = ingest_source(DUMPS / name, tmp_path, lang=name[:2])
    assert (got["read"], got["kept"]) == REAL[name]
    assert got["read"] == got["kept"] + sum(got["left_out"].values())
    for entry in entries_of(tmp_path, name[:2]):
        lead = entry["paragraphs"][0]
        assert not any(mark in lead for mark in MARKUP), lead
        assert len(lead) > 20
        assert lead[0] not in "|*#:;=<"


@needs_dumps
def test_both_ways_to_read_wikitext_agree_on_real_articles():
    texts = [
        page["text"]
        for file in sorted(DUMPS.glob("*/*"))
        for page in dump_pages(file, Counter(), [])
        if page["ns"] in ("", "0")
    ]
    pairs = [(wiki_paragraphs(text), careful_paragraphs(text)) for text in texts]
    assert len(pairs) > 230
    assert sum(len(paragraphs) for _, (paragraphs, _) in pairs) > 3900
    for (fast, fast_reason), (careful, careful_reason) in pairs:
        assert fast[:1] == careful[:1]
        assert fast_reason == careful_reason
    # {{formatnum:{{#expr:…}}}}: the careful parser loses the rest of the line
    assert sum(fast != careful for fast, careful in pairs) <= 1


@needs_wiki
def test_real_corpus_is_read_whole():
    counts = Counter()
    n_whole = Counter()
    for lang, files in corpus_files(WIKI).items():
        for file in files:
            for entry in read_entries(file, lang, counts):
                n_whole[lang] += bool(entry["title"] and entry["paragraphs"])
    assert n_whole == {
        "en": 5846,
        "de": 4603,
        "fr": 1950,
        "ja": 1694,
        "zh": 1340,
        "es": 456,
    }
    assert not counts
