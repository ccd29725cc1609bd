"""Counterparts tables: every source says the same, whatever is in it; and what a run makes of one."""

import bz2
import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from cmining import mine_corpus, read_record, read_run
from cmining.core.basics import CorpusError, RunError
from cmining.core.runs import Params
from cmining.evidence.explain import explain_entry, explain_text
from cmining.evidence.quality import silver_counterparts
from cmining.ingest import links as links_module
from cmining.ingest.corpus import write_corpus
from cmining.ingest.links import (
    item_rows,
    link_entries,
    read_links,
    sitelinks,
    sql_rows,
    sql_value,
    wiki_title,
)

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_wiki = pytest.mark.skipif(
    not (DATA / "wiki").is_dir(), reason="../shared/data/wiki is not there"
)
LANGS = ["de", "en", "ja"]
ROWS = {
    ("Q89", "de", "Apfel"),
    ("Q89", "en", "Apple"),
    ("Q89", "ja", "リンゴ"),
    ("Q2", "de", '"Helden" (Lied), d\'Or \\'),
    ("Q2", "en", "Heroes"),
}


# the grammar


def quote(value: bytes | None) -> bytes:
    "A literal as mysqldump writes it."
    if value is None:
        return b"NULL"
    escapes = {b"\0": b"\\0", b"\n": b"\\n", b"\r": b"\\r", b"\x1a": b"\\Z"}
    escapes |= {b"'": b"\\'", b'"': b'\\"', b"\\": b"\\\\"}
    parts = [escapes.get(bytes([byte]), bytes([byte])) for byte in value]
    return b"'" + b"".join(parts) + b"'"


LITERALS = st.one_of(
    st.binary(max_size=12).map(lambda value: (quote(value), value)),
    st.binary(max_size=6).map(lambda value: (b"_binary " + quote(value), value)),
    st.binary(min_size=1, max_size=6).map(lambda v: (b"0x" + v.hex().encode(), v)),
    st.binary(max_size=6).map(lambda v: (b"x'" + v.hex().encode() + b"'", v)),
    st.just((b"NULL", None)),
    st.integers().map(lambda n: (str(n).encode(), str(n).encode())),
    st.floats(allow_nan=False, allow_infinity=False).map(
        lambda x: (str(x).encode(), str(x).encode())
    ),
    # what looks like rows, ends and other statements
    st.lists(
        st.sampled_from(["(1,'a')", "'", "\\", "),(", ";\n", "INSERT INTO `t` VALUES "])
    )
    .map(lambda parts: "".join(parts).encode())
    .map(lambda value: (quote(value), value)),
)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(LITERALS, min_size=width, max_size=width), min_size=1, max_size=5
    )
)
SPACES = st.sampled_from([b"", b" ", b"\n"])


@given(TABLES, SPACES, st.integers(1, 50), st.booleans())
def test_rows_come_back_as_they_were_written(table, space, size, has_create):
    width = len(table[0])
    names = [f"c{i}" for i in range(width)]
    rows = [
        b"(" + (b"," + space).join(literal for literal, _ in row) + b")" for row in table
    ]
    statement = b"INSERT INTO `t` VALUES " + (b"," + space).join(rows) + b";\n"
    columns = "".join(f"  `{name}` varbinary(9) DEFAULT '',\n" for name in names)
    create = f"CREATE TABLE `t` (\n{columns}  PRIMARY KEY (`c0`)\n) ENGINE=x;\n".encode()
    dump = (
        create * has_create + statement + b"INSERT INTO `other` VALUES (1);\n" + statement
    )
    pieces = (dump[i : i + size] for i in range(0, len(dump), size))
    counts = Counter()
    read = list(sql_rows(pieces, "t", names, counts, () if has_create else names))
    values = [[value for _, value in row] for row in table]
    assert [list(map(sql_value, row)) for row in read] == values + values
    assert not counts


@given(st.binary(max_size=200), st.integers(1, 9))
def test_no_dump_breaks_the_reader(noise, size):
    dump = b"INSERT INTO `t` VALUES (1,'a')," + noise
    pieces = (dump[i : i + size] for i in range(0, len(dump), size))
    rows = [
        tuple(map(sql_value, row))
        for row in sql_rows(pieces, "t", ["a"], Counter(), ["a", "b"])
    ]
    assert rows[:1] == [(b"1",)]


def test_a_dump_cut_anywhere_gives_its_first_rows():
    rows = [b"(%d,'en','Title \\'%d\\'')" % (n, n) for n in range(9)]
    dump = b"INSERT INTO `langlinks` VALUES " + b",".join(rows) + b";\n"
    names = ("ll_from", "ll_lang", "ll_title")
    whole = list(sql_rows([dump], "langlinks", names, Counter(), names))
    assert len(whole) == 9
    for cut in range(len(dump)):
        counts = Counter()
        read = list(sql_rows([dump[:cut]], "langlinks", names, counts, names))
        assert read == whole[: len(read)]
        assert len(read) == sum(
            dump[:cut].count(row + end) for row in rows for end in (b",", b";")
        )
    assert not counts["broken statement"]


def test_a_line_of_many_megabytes_and_a_broken_row_in_it():
    row = b"(1,'en','" + b"a" * 200 + b"'),"
    line = b"INSERT INTO `t` VALUES " + row * 20_000
    dump = line + b"(2,'en)," + row * 9_000 + b";\nINSERT INTO `t` VALUES (3,'de','b');\n"
    pieces = (dump[i : i + (1 << 20)] for i in range(0, len(dump), 1 << 20))
    counts = Counter()
    read = list(sql_rows(pieces, "t", ["c0"], counts, ["c0", "c1", "c2"]))
    assert counts["broken statement"] <= 1
    assert read[:20_000] == [(b"1",)] * 20_000
    assert read[-1] == (b"3",)


# the readers


def write_langlinks(folder: Path, suffix: str = ".gz") -> Path:
    "A German wiki with the concepts of ROWS, a redirect, a talk page, and a link of each."
    pages = [
        (1, 0, "Apfel", 0),
        (2, 0, '"Helden"_(Lied),_d\'Or_\\', 0),
        (3, 1, "Apfel", 0),
    ]
    pages += [(4, 0, "Äpfel", 1)]
    rows = [
        b"(%d,%d,%s,%d,0.5)" % (n, ns, quote(title.encode()), redirect)
        for n, ns, title, redirect in pages
    ]
    columns = [
        "page_id",
        "page_namespace",
        "page_title",
        "page_is_redirect",
        "page_random",
    ]
    create = "CREATE TABLE `page` (\n" + "".join(f"  `{c}` int,\n" for c in columns)
    page = create.encode() + b"  PRIMARY KEY (`page_id`)\n);\nINSERT INTO `page` VALUES "
    page += b",".join(rows) + b";\n"
    linked = [
        (1, "en", "Apple"),
        (1, "ja", "リンゴ"),
        (1, "nl", "Appel"),
        (2, "en", "heroes"),
    ]
    linked += [(3, "en", "Talk:Apple"), (4, "en", "Apples"), (2, "en", "Album#Heroes")]
    rows = [
        b"(%d,%s,%s)" % (n, quote(l.encode()), quote(t.encode())) for n, l, t in linked
    ]
    links = b"INSERT INTO `langlinks` VALUES " + b",".join(rows) + b";\n"
    opener = {".gz": gzip.open, ".bz2": bz2.open, "": open}[suffix]
    for name, text in (("page", page), ("langlinks", links)):
        with opener(folder / f"dewiki-20260101-{name}.sql{suffix}", "wb") as file:
            file.write(text)
    return folder / f"dewiki-20260101-langlinks.sql{suffix}"


def write_wikidata(path: Path) -> Path:
    "The concepts of ROWS as a dump of Wikidata, with a property among the items."
    items = []
    for concept in sorted({row[0] for row in ROWS}):
        links = {
            f"{l}wiki": {"site": f"{l}wiki", "title": t}
            for c, l, t in ROWS
            if c == concept
        }
        links |= {"commonswiki": {"site": "commonswiki", "title": "Category:X"}}
        labels = {"en": {"language": "en", "value": '"sitelinks":{"dewiki": 1}'}}
        items.append(
            {"type": "item", "id": concept, "labels": labels, "sitelinks": links}
        )
    items += [{"type": "property", "id": "P31", "labels": {}}]
    items += [{"type": "item", "id": "Q3", "labels": {}, "sitelinks": []}]
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".json": open}[path.suffix]
    with opener(path, "wb") as file:
        file.write(f"[\n{lines}\n]\n".encode())
    return path


def write_plain(folder: Path, kind: str) -> Path:
    "ROWS as a plain table."
    long = pd.DataFrame(sorted(ROWS), columns=["concept", "lang", "title"])
    wide = long.pivot(index="concept", columns="lang", values="title").reset_index()
    form, _, suffix = kind.partition(" ")
    table = {"long": long, "wide": wide}[form]
    path = folder / f"table{suffix}"
    if suffix == ".parquet":
        table.to_parquet(path)
    elif ".jsonl" in suffix:
        table.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in suffix else ",")
    return path


PLAIN = [
    f"{form} {s}"
    for form in ("long", "wide")
    for s in (".csv", ".tsv.gz", ".jsonl.bz2", ".parquet")
]


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_tables_say_the_same(kind, tmp_path):
    assert set(read_links(write_plain(tmp_path, kind), LANGS)) == ROWS


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.bz2"])
def test_wikidata_says_the_same(suffix, tmp_path):
    counts = Counter()
    path = write_wikidata(tmp_path / f"wikidata{suffix}")
    assert set(read_links(path, LANGS, counts)) == ROWS
    assert counts["other language"] + counts["other project"] == 2


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ""])
def test_langlinks_say_the_same(suffix, tmp_path):
    counts = Counter()
    path = write_langlinks(tmp_path, suffix)
    names = {"dewiki:1": "Q89", "dewiki:2": "Q2"}
    read = {(names[c], lang, title) for c, lang, title in read_links(path, LANGS, counts)}
    assert read == ROWS
    assert counts == {
        "page outside the article namespace": 1,
        "redirect": 1,
        "other language": 1,
        "link of a page that is no article": 2,
        "section of a page": 1,
    }
    assert set(read_links(tmp_path, LANGS)) == set(read_links(path, LANGS))


def test_a_wiktionary_keeps_its_first_letters(tmp_path):
    old = write_langlinks(tmp_path, "")
    for path in (old, tmp_path / "dewiki-20260101-page.sql"):
        path.rename(path.with_name(path.name.replace("dewiki", "dewiktionary")))
    titles = {link.title for link in read_links(tmp_path, LANGS)}
    assert "heroes" in titles
    entries = pd.DataFrame(
        {"lang": ["en", "en", "de"], "title": ["heroes", "Heroes", "Apfel"]}
    )
    assert link_entries(entries, tmp_path)["n_langs"].notna().tolist() == [
        True,
        False,
        True,
    ]


def test_a_file_that_breaks_off_is_counted(tmp_path):
    path = write_wikidata(tmp_path / "wikidata.json.gz")
    path.write_bytes(path.read_bytes()[:-30])
    counts = Counter()
    list(read_links(path, LANGS, counts))
    assert any("cut off" in what for what in counts)
    (tmp_path / "wiki").mkdir()
    path = write_langlinks(tmp_path / "wiki")
    path.write_bytes(path.read_bytes()[:-12])
    counts = Counter()
    list(read_links(path, LANGS, counts))
    assert any("cut off" in what for what in counts)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.tsv",
            "concept\tlang\ttitle\nQ1\tfr\tUnivers\n",
            "no title in the corpus's languages",
        ),
        ("a.csv", "id,name\n1,x\n", "no title in the corpus's languages"),
        ("a.csv", "", "no title in the corpus's languages"),
        ("a.xlsx", "x", "A counterparts table is .tsv"),
        ("langlinks.sql", "", "does not say which wiki"),
        (
            "dewiki-20260101-langlinks.sql",
            "",
            "needs dewiki-20260101-page.sql.gz beside it",
        ),
        ("a.parquet", "x", "Cannot read"),
    ],
)
def test_errors_say_the_way_out(name, text, message, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    entries = pd.DataFrame({"lang": ["de", "en"], "title": ["Apfel", "Apple"]})
    with pytest.raises(CorpusError, match=message):
        link_entries(entries, tmp_path / name)


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda cells: (
        st.lists(cells, max_size=2)
        | st.dictionaries(st.text(max_size=4), cells, max_size=2)
    ),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.sampled_from(["id", "sitelinks", "concept", "lang", "title", "de"]), CELLS
    )
)
def test_any_object_is_links_or_counted(row):
    line = json.dumps(row).encode()
    assert all(
        link.lang in LANGS for link in item_rows(line, frozenset(LANGS), Counter())
    )
    named = [links_module.row_links(row, frozenset(LANGS), "x", Counter())]
    assert all(isinstance(link.title, str) for links in named for link in links)


@given(
    st.text(max_size=20),
    st.dictionaries(
        st.sampled_from(["dewiki", "enwiki"]), st.text(min_size=1), min_size=1
    ),
)
def test_sitelinks_are_found_without_parsing_the_rest(label, titles):
    item = {
        "type": "item",
        "id": "Q5",
        "labels": {"en": label + '"sitelinks":{'},
        "sitelinks": titles,
    }
    for separators in ((",", ":"), (", ", ": ")):
        line = json.dumps(item, ensure_ascii=False, separators=separators).encode(
            "utf-8", "replace"
        )
        found = sitelinks(line)
        assert found and found[0] == "Q5"
        assert found[1].keys() == titles.keys()


@given(st.text(max_size=12))
def test_a_title_is_written_the_same_way_twice(title):
    once = wiki_title(title)
    assert wiki_title(once) == once
    assert "_" not in once


def test_memory_is_the_corpus_s_not_the_table_s(tmp_path, monkeypatch):
    "Blocks of rows: the answer does not depend on where they end."
    rng = np.random.default_rng(0)
    n = 3_000
    table = pd.DataFrame(
        {
            "concept": rng.integers(900, size=n),
            "lang": rng.choice(LANGS, n),
            "title": [f"T{i}" for i in rng.integers(2_000, size=n)],
        }
    )
    pq.write_table(pa.Table.from_pandas(table.astype(str)), tmp_path / "t.parquet")
    entries = table.sample(300, random_state=0)[["lang", "title"]]
    whole = link_entries(entries, tmp_path / "t.parquet")
    monkeypatch.setattr(links_module, "BLOCK_ROWS", 64)
    pd.testing.assert_frame_equal(link_entries(entries, tmp_path / "t.parquet"), whole)


# a run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Two languages of the sample."
    folder = tmp_path_factory.mktemp("links")
    for lang in ("de", "ja"):
        rows = [
            json.loads(l)
            for l in (SAMPLE / f"{lang}.jsonl").read_text("utf-8").splitlines()
        ]
        write_corpus(rows, folder / "corpus", lang)
    return folder / "corpus"


def test_a_run_knows_its_table_and_sees_another(corpus, tmp_path):
    table = tmp_path / "table.csv"
    table.write_bytes((SAMPLE / "labels.csv").read_bytes())
    run = tmp_path / "run"
    params = Params.of(n_repeats=1)
    points = mine_corpus(corpus, run, params, jobs=1, counterparts_table=table)
    entries = read_run(run, "entries")
    expected = link_entries(entries, table)["n_langs"].astype(object)
    pd.testing.assert_series_equal(
        entries["n_langs"].astype(object).where(entries["n_langs"].notna(), None),
        expected.where(expected.notna(), None),
        check_names=False,
    )
    assert set(points["n_langs"].dropna()) <= {1, 2}
    record = read_record(run)
    assert record["counterparts_table"]["rows"] > 300
    assert record["comparability"]["found"] == 1
    first = (run / "culture_points.parquet").read_bytes()
    mine_corpus(corpus, run, params, jobs=1, counterparts_table=table)
    assert (run / "culture_points.parquet").read_bytes() == first
    resumed = {step["step"]: step for step in read_record(run)["steps"]}
    assert resumed["table"]["resumed"] == 1
    table.write_text("concept,lang,title\nx,de,Photosynthese\n", encoding="utf-8")
    mine_corpus(corpus, run, params, jobs=1, counterparts_table=table)
    assert read_run(run, "entries")["n_langs"].notna().sum() == 1
    mine_corpus(corpus, run, params, jobs=1)
    assert read_run(run, "entries")["n_langs"].isna().all()
    assert read_record(run)["counterparts_table"] is None


def test_points_that_many_languages_know_are_dropped(corpus, tmp_path):
    run = tmp_path / "run"
    before = mine_corpus(corpus, run, Params.of(n_repeats=1), jobs=1)
    point = before.iloc[0]
    table = tmp_path / "table.jsonl"
    rows = [{"concept": "x", "lang": point["lang"], "title": point["title"]}]
    rows += [{"concept": "x", "lang": lang, "title": "?!"} for lang in ("de", "ja")]
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    params = Params.of(n_repeats=1, max_langs=1)
    after = mine_corpus(corpus, run, params, jobs=1, counterparts_table=table)
    assert len(after) == len(before) - 1
    assert point["id"] not in set(after["id"])
    entry = read_run(run, "entries").query("id == @point['id']").iloc[0]
    assert (entry["stage"], entry["reason"]) == ("mixed", "known elsewhere")
    record = explain_entry(run, point["title"], point["lang"])
    assert record["n_langs"] == 2
    assert not record["tests"][-1]["passed"]
    assert "by the counterparts table" in explain_text(record)
    with pytest.raises(RunError, match="max_langs needs a table"):
        mine_corpus(corpus, tmp_path / "other", params, jobs=1)


def test_silver_says_how_many_there_are(tmp_path):
    entries = pd.DataFrame(
        {
            "lang": ["de", "en", "de", "en", "de"],
            "title": ["Apfel", "apple", "Kiez", "Pub", "Hund"],
            "stage": ["mixed", "small", "culture_point", "pruned", "mixed"],
        }
    )
    table = tmp_path / "t.csv"
    table.write_text("en,de\nApple,Apfel\nPub,\nDog,Hund\n,Kiez\n", encoding="utf-8")
    silver = silver_counterparts(entries, table, np.array([0.1, 0.2, 0.9, 0.0, 0.5]))
    of_all = silver.loc["all"]
    assert of_all[["present", "alone", "auc"]].tolist() == [2, 1, 1]
    assert of_all[["selected_present", "selected"]].tolist() == [0, 1 / 3]
    assert np.isnan(silver.loc["en", "auc"])


@needs_wiki
def test_real_titles():
    "As counted by another program: 1,315 entries with a counterpart among the entries."
    path = DATA / "gold" / "wiki_title_labels.tsv.gz"
    labels = pd.read_csv(path, sep="\t", quoting=3, keep_default_na=False)
    linked = link_entries(labels[["lang", "title"]], path)
    assert (linked["n_present"] > 0).sum() == 1315
    assert (linked["n_langs"] == 1).sum() == 8297
    assert (linked["n_langs"] == 6).sum() == 5288
