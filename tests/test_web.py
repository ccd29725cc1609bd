"""Harvesting the web: hostile archives and pages, a server that misbehaves, kills, and mining what comes out."""

import gzip
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("trafilatura", reason="the extra web is not installed")

from cmining.cli import main
from cmining.collect import web
from cmining.collect.fetch import Manners, fetch_pages, read_archive
from cmining.collect.merge import mined_records
from cmining.collect.web import fingerprints, group_copies, harvest
from cmining.core.basics import CorpusError, RunError
from cmining.ingest.archives import (
    Found,
    clean_address,
    has_members,
    member_pages,
    whole_pages,
)
from cmining.ingest.corpus import corpus_files, read_entries, unread_files
from cmining.ingest.pages import (
    Counts,
    decode_page,
    page_lang,
    page_licence,
    parse_html,
    read_page,
)
from cmining.mine.pipeline import mine_corpus

ROOT = Path(__file__).parent.parent
LANGS = ("de", "en", "es", "fr", "ja", "zh")


def record(address, body, kind="response", **fields):
    body = body if isinstance(body, bytes) else body.encode()
    head = {"WARC-Type": kind, "WARC-Date": "2026-03-04T05:06:07Z"}
    head |= {"WARC-Target-URI": address} if address else {}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (head | fields).items())
    head = f"WARC/1.0\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body + b"\r\n\r\n"


def answer(html, kind="text/html; charset=utf-8", status="200 OK", more=""):
    body = html if isinstance(html, bytes) else html.encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body


def html_of(title, paragraphs, head="", foot=""):
    text = "".join(f"<p>{p}</p>" for p in paragraphs)
    return (
        f"<!doctype html><html><head><title>{title}</title>{head}</head><body><nav><a href='/'>"
        f"Home</a></nav><main><h1>{title}</h1>{text}</main><footer>{foot}</footer></body></html>"
    )


def sample(lang, n=None):
    "Titles and paragraphs of the bundled sample."
    path = ROOT / "data" / "sample" / f"{lang}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[:n]
    return [(row["title"], row["paragraphs"]) for row in map(json.loads, lines)]


def packed(*records):
    return b"".join(gzip.compress(r, 1, mtime=0) for r in records)


def crawl(path, langs=("de", "en", "ja"), n=40, copies=3):
    "An archive of pages made of the sample, some of them twice."
    records = []
    for lang in langs:
        for i, (title, paragraphs) in enumerate(sample(lang, n)):
            page = answer(
                html_of(title, paragraphs, foot="<p>We use cookies on all pages.</p>")
            )
            records.append(record(f"http://{lang}.example/{i}", page))
            if i < copies:
                records.append(record(f"http://mirror.example/{lang}/{i}", page))
    path.write_bytes(packed(*records))
    return len(records)


def rows(corpus, lang):
    return [
        row
        for path in corpus_files(corpus).get(lang, [])
        for row in read_entries(path, lang, Counter())
    ]


def adds_up(record):
    for what in ("pages", "paragraphs"):
        told = record[what]
        assert told["read"] == told["kept"] + sum(told["left_out"].values()), what


def corpus_bytes(corpus):
    return {
        path.relative_to(corpus).as_posix(): path.read_bytes()
        for path in sorted(corpus.rglob("*.parquet"))
        if ".web" not in path.parts
    }


# ---- archives


def test_the_corpus_is_the_same_whatever_the_workers(tmp_path, monkeypatch):
    n = crawl(tmp_path / "a.warc.gz")
    one = harvest([tmp_path / "a.warc.gz"], tmp_path / "one", jobs=1)
    monkeypatch.setattr(web, "STRETCH", 30_000)
    two = harvest([tmp_path / "a.warc.gz"], tmp_path / "two", jobs=2)
    assert corpus_bytes(tmp_path / "one") == corpus_bytes(tmp_path / "two")
    assert one["pages"] == two["pages"]
    assert one["pages"]["read"] == n
    assert one["pages"]["left_out"]["most of it has stood before"] == 9
    adds_up(one)
    assert unread_files(tmp_path / "one") == {}
    assert set(one["languages"]) == {"de", "en", "ja"}
    first = rows(tmp_path / "one", "ja")[0]
    assert first["address"] == "http://ja.example/0"
    assert first["date"] == "2026-03-04T05:06:07Z"
    title, paragraphs = sample("ja", 1)[0]
    assert first["title"] == title
    assert set(first["paragraphs"]) <= set(paragraphs)


def test_stretches_cover_an_archive(tmp_path):
    path = tmp_path / "a.warc.gz"
    crawl(path, langs=("en",), n=20)
    whole = [page.address for page in member_pages(path, 0, 10**9, Counter())]
    for size in (1, 997, 5000):
        if size == 1:
            cuts = [0, 1, 2, 3, path.stat().st_size]
        else:
            cuts = [*range(0, path.stat().st_size, size), path.stat().st_size]
        pages = [
            page.address
            for start, stop in zip(cuts, cuts[1:])
            for page in member_pages(path, start, stop, Counter())
        ]
        assert pages == whole


def test_plain_and_whole_archives_say_the_same(tmp_path):
    paths = [tmp_path / name for name in ("a.warc.gz", "b.warc", "c.warc.gz")]
    crawl(paths[0], langs=("en",), n=20)
    paths[1].write_bytes(gzip.decompress(paths[0].read_bytes()))
    paths[2].write_bytes(gzip.compress(paths[1].read_bytes()))
    assert [has_members(path) for path in paths] == [True, False, False]
    corpora = []
    for path in paths:
        harvest([path], tmp_path / path.name.replace(".", "-"), jobs=1)
        corpora.append(corpus_bytes(tmp_path / path.name.replace(".", "-")))
    assert corpora[0] == corpora[1] == corpora[2]


def test_what_is_broken_costs_its_record(tmp_path, capfd):
    page = answer(html_of("Tea", sample("en", 1)[0][1]))
    good = [packed(record(f"http://a.example/{i}", page)) for i in range(4)]
    damaged = bytearray(good[1])
    damaged[len(damaged) // 2 : len(damaged) // 2 + 8] = b"\xff" * 8
    bomb = packed(record("http://a.example/bomb", answer(b"<p>" + b"a" * (9 << 20))))
    odd = [
        packed(b""),
        packed(b"no record at all"),
        packed(b"WARC/1.0\r\nWARC-Type: response\r\n\r\n"),
        packed(record("", page)),
        packed(
            record("http://a.example/neg", page).replace(
                b"Content-Length: ", b"Content-Length: -"
            )
        ),
        packed(
            record("http://a.example/huge", page).replace(
                b"Content-Length: ", b"Content-Length: 99"
            )
        ),
        packed(record("http://a.example/zero", b"")),
        packed(record("http://a.example/empty", answer(""))),
        packed(record("ftp://a.example/", page)),
        packed(
            record(
                "http://a.example/gz",
                answer(b"not gzip", more="Content-Encoding: gzip\r\n"),
            )
        ),
        packed(record("http://a.example/v", page, kind="revisit")),
        b"garbage between members",
    ]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(
        good[0] + bytes(damaged) + bomb + b"".join(odd) + good[2] + good[3][:-30]
    )
    counts = Counter()
    pages = [page.address for page in member_pages(path, 0, 10**9, counts)]
    assert pages[0] == "http://a.example/0"
    assert "http://a.example/2" in pages
    assert not {"http://a.example/1", "http://a.example/3", "http://a.example/bomb"} & {
        *pages
    }
    for reason in ("damaged record", "record cut off", "longer than 8 MiB", "empty"):
        assert counts[reason], reason
    assert counts["read"] == len(pages) + sum(
        n for why, n in counts.items() if why != "read"
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"\x1f\x8b\x08" * 9, b"WARC/", b"\0" * 5000]
)
def test_files_that_are_no_archive(tmp_path, content):
    for name in ("a.warc", "a.warc.gz", "a.wet.gz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorpusError, match="No page for a corpus"):
            harvest([tmp_path / name], tmp_path / "out", jobs=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=20))
def test_any_damage_is_survived(tmp_path_factory, at, noise):
    page = answer(html_of("Tea", ["Tea is a hot drink made of leaves and water."]))
    data = bytearray(packed(*(record(f"http://a.example/{i}", page) for i in range(5))))
    at %= len(data)
    data[at : at + len(noise)] = noise
    path = tmp_path_factory.mktemp("d") / "a.warc.gz"
    path.write_bytes(bytes(data))
    counts = Counter()
    pages = list(member_pages(path, 0, 10**9, counts))
    assert len(pages) >= 3
    assert counts["read"] == len(pages) + sum(
        n for why, n in counts.items() if why != "read"
    )
    list(whole_pages(path, Counter()))


def test_wet_lines(tmp_path):
    records = []
    for i, (title, paragraphs) in enumerate(sample("en", 8)):
        lines = [
            title,
            "Home",
            "Log in",
            "Our terms of service hold on every page of this site.",
            *paragraphs,
        ]
        text = "\n".join([*lines, "© 2026", "Read more »"])
        records.append(record(f"http://a.example/{i}", text, kind="conversion"))
    (tmp_path / "a.warc.wet.gz").write_bytes(packed(*records))
    told = harvest([tmp_path / "a.warc.wet.gz"], tmp_path / "out", jobs=1)
    adds_up(told)
    assert told["paragraphs"]["left_out"]["boilerplate of its host"] == 8
    entries = rows(tmp_path / "out", "en")
    assert [entry["title"] for entry in entries] == [
        title for title, _ in sample("en", 8)
    ]
    for entry, (_, paragraphs) in zip(entries, sample("en", 8)):
        assert set(entry["paragraphs"]) <= set(paragraphs)


# ---- pages


TEXTS = {
    "latin-1": "Im Herbst ziehen die Kinder mit Laternen durch das Dorf und singen vor jeder Tür ein altes Lied über den Müller, der früher die Kerzen bezahlt hat.",
    "shift_jis": "この町では毎年秋に大きな祭りが行われ、たくさんの人が集まります。子どもたちは手作りの灯籠を持って川まで歩き、古い歌を歌います。",
    "euc_jp": "この町では毎年秋に大きな祭りが行われ、たくさんの人が集まります。子どもたちは手作りの灯籠を持って川まで歩き、古い歌を歌います。",
    "iso2022_jp": "この町では毎年秋に大きな祭りが行われ、たくさんの人が集まります。子どもたちは手作りの灯籠を持って川まで歩き、古い歌を歌います。",
    "gb18030": "每年秋天，村里的人都会聚在一起，做同样的点心，唱同样的歌，孩子们提着自己做的灯笼走到河边，等最后一盏灯熄灭才回家。",
    "utf-16": "Every autumn the children walk down to the river with lanterns, and nobody goes home early.",
}


@pytest.mark.parametrize("codec", TEXTS)
@pytest.mark.parametrize("where", ["http", "meta", "wrong"])
def test_encodings(codec, where):
    text = TEXTS[codec]
    head = {
        "meta": f'<meta charset="{codec}">',
        "wrong": '<meta charset="us-ascii">',
    }.get(where, "")
    body = html_of("x", [text], head)
    if where == "wrong":
        data = body.encode("utf-8-sig" if codec == "utf-16" else "utf-8")
    else:
        data = body.encode(codec)
    assert text in decode_page(data, codec if where == "http" else "")


@pytest.mark.parametrize("codec", ["latin-1", "shift_jis", "euc_jp", "gb18030"])
def test_encodings_that_nobody_declares(codec):
    "A longer text is told from its bytes; a wrong guess would be no language."
    data = html_of("x", [TEXTS[codec]] * 3).encode(codec)
    assert TEXTS[codec] in decode_page(data)


HOSTILE = {
    "deep": "<div>" * 50_000 + "deep",
    "unclosed": "<b><i>" * 20_000 + "text",
    "wide": "<p>a</p>" * 60_000,
    "attributes": "<p " + " ".join(f"a{i}='x'" for i in range(30_000)) + ">x",
    "entities": "<!DOCTYPE html [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]><p>&b;&b;",
    "external": "<!DOCTYPE html [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><p>&x; is read here.",
    "comment": "<!--" + "-" * 10_000 + "<p>x",
    "nul": "<p>Tea\0 is a\0 drink.\0</p>",
    "surrogate": "<p>&#xD800;&#xDFFF; &#1114112; tea</p>",
    "script": "<script>document.write('<p>Do not read this sentence here.</p>')</script><p>Tea.",
    "json-ld": "<script type='application/ld+json'>" + "[" * 50_000 + "</script><p>Tea.",
    "frameset": "<frameset><frame src='a'></frameset>",
    "tags in a tag": ("<a" * 1900 + ">") * 500,
    "no end of a tag": "<p " + "a='<x" * 100_000,
    "not UTF-8, no end": b"<" * 300_000 + b"\xe9" + b"<script" * 30_000,
    "data": "<p data-x='" + "{1}" * 5000 + "'>" + "Tea is a hot drink of leaves. " * 9,
    "nothing": "<html></html>",
    "no tag": "just a text that has no tags at all, but goes on for quite a while, as texts do.",
    "svg": "<svg><foreignObject><p>Tea</p></foreignObject></svg>",
    "xml": "<?xml version='1.0' encoding='utf-7'?><html><p>+ADw-script+AD4-</p></html>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages(name):
    counts = Counts.none()
    counts.pages["read"] += 1
    start = time.perf_counter()
    body = HOSTILE[name]
    body = body if isinstance(body, bytes) else body.encode("utf-8", "replace")
    page = read_page(Found("http://a.example/", body), counts)
    assert time.perf_counter() - start < 5
    assert page is None or page.paragraphs
    assert counts.pages.total() == 1 + (page is None)
    if page:
        text = " ".join(page.paragraphs)
        assert "Do not read" not in text and "root:" not in text and "<" not in text


TAGS = [
    "p",
    "div",
    "a",
    "h1",
    "table",
    "td",
    "li",
    "script",
    "title",
    "meta",
    "figure",
    "article",
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([f"<{t}>" for t in TAGS] + [f"</{t}>" for t in TAGS]),
            st.sampled_from(
                [
                    "<!--",
                    "-->",
                    "<![CDATA[",
                    "]]>",
                    "&#0;",
                    "&bogus;",
                    "<a rel=license href=x>",
                ]
            ),
            st.text(max_size=30),
            st.just("Every autumn the children walk down to the river with lanterns. "),
        ),
        max_size=40,
    )
)
def test_any_html_is_read(pieces):
    counts = Counts.none()
    page = read_page(
        Found("http://a.example/", "".join(pieces).encode("utf-8", "replace")), counts
    )
    assert counts.pages.total() == (page is None)
    kept = len(page.paragraphs) if page else 0
    paragraphs = counts.paragraphs
    assert paragraphs["read"] == kept + paragraphs.total() - paragraphs["read"]


@given(st.text(max_size=80))
def test_addresses_are_clean(text):
    address = clean_address(text)
    assert address == "" or (address.isascii() and clean_address(address) == address)
    web_address = clean_address(f"http://example.org/{text}")
    assert web_address == "" or web_address.isprintable()


def test_a_page_in_two_languages():
    german = [
        TEXTS["latin-1"],
        "Danach gibt es in der Mühle heißen Apfelsaft und frisches Brot für alle.",
    ]
    found = Found(
        "http://a.example/",
        html_of("Laternen", [*german, TEXTS["utf-16"], TEXTS["gb18030"]]).encode(),
    )
    counts = Counts.none()
    page = read_page(found, counts)
    assert (page.lang, page.paragraphs) == ("de", german)
    assert counts.paragraphs["in another language than its page"] == 2


def test_languages_of_the_sample():
    "Nearly all paragraphs of the sample stay, in the language that they are in."
    for lang in LANGS:
        counts = Counter()
        judged = [page_lang(paragraphs, "", counts) for _, paragraphs in sample(lang, 60)]
        assert np.mean([code == lang for code, _ in judged]) > 0.95, lang
        n_kept = sum(len(kept) for _, kept in judged)
        assert n_kept > 0.95 * (n_kept + counts.total()), lang


def test_a_reserved_page_is_left_out(tmp_path):
    texts = sample("en", 3)
    metas = [
        '<meta name="tdm-reservation" content="1">',
        '<meta name="robots" content="index, noai">',
        "",
    ]
    pages = [html_of(*text, head=meta) for text, meta in zip(texts, metas)]
    records = [
        record(f"http://a.example/{i}", answer(page)) for i, page in enumerate(pages)
    ]
    more = answer(pages[2], more="X-Robots-Tag: noai, noimageai\r\n")
    (tmp_path / "a.warc.gz").write_bytes(
        packed(*records, record("http://a.example/x", more))
    )
    told = harvest([tmp_path / "a.warc.gz"], tmp_path / "out", jobs=1)
    assert told["pages"]["left_out"] == {"reserved against mining by its site": 3}


def test_licences_stay_with_their_pages(tmp_path):
    licence = (
        '<a rel="license" href="https://creativecommons.org/licenses/by-nc/4.0/">x</a>'
    )
    pages = [
        html_of(*text, foot=licence if i else "")
        for i, text in enumerate(sample("en", 4))
    ]
    records = [
        record(f"http://a.example/{i}", answer(page)) for i, page in enumerate(pages)
    ]
    (tmp_path / "a.warc.gz").write_bytes(packed(*records))
    told = harvest([tmp_path / "a.warc.gz"], tmp_path / "out", jobs=1)
    assert told["licences"] == {"CC-BY-NC-4.0": 3, "NOASSERTION": 1}
    licences = [entry["licence"] for entry in rows(tmp_path / "out", "en")]
    assert licences == ["NOASSERTION", *["CC-BY-NC-4.0"] * 3]
    hostile = "<a rel=license href='javascript:alert(1)//creativecommons.org/licenses/by/9.9/'>x</a>"
    assert page_licence(parse_html(f"<p>{hostile}"))[1].startswith(
        "rel=license: javascript"
    )


# ---- copies


def test_copies_in_any_amount_are_found():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(5000)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(300)]
    changed = []
    for text in texts:
        tokens = text.split()
        tokens[rng.randrange(60)] = "changed"
        changed.append(" ".join(tokens))
    hashes, signatures = fingerprints(texts + changed)
    groups = group_copies(hashes, signatures.T)
    found = sum(groups[i] == groups[300 + i] for i in range(300))
    # J is 0.87 in the middle of a text, its estimate 0.87 ± 0.04
    assert found > 0.9 * 300
    assert len(set(groups[:300])) == 300
    many = [texts[0]] * 2000 + [changed[0]] * 2000
    hashes, signatures = fingerprints(many)
    assert len(set(group_copies(hashes, signatures.T))) == 1


# ---- folders and lists


def test_saved_pages(tmp_path):
    folder = tmp_path / "saved"
    (folder / "a.example" / "sub").mkdir(parents=True)
    texts = sample("en", 3)
    canonical = '<link rel="canonical" href="https://a.example/tea">'
    (folder / "a.example" / "1.html").write_text(
        html_of(*texts[0], head=canonical), encoding="utf-8"
    )
    (folder / "a.example" / "sub" / "2.HTM").write_text(
        html_of(*texts[1]), encoding="utf-8"
    )
    (folder / "a.example" / "logo.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.html").write_text(html_of(*texts[2]), encoding="utf-8")
    (folder / "empty.html").touch()
    told = harvest([folder], tmp_path / "out", jobs=1)
    entries = rows(tmp_path / "out", "en")
    assert [entry["address"] for entry in entries] == [
        "https://a.example/tea",
        "file:saved/a.example/sub/2.HTM",
    ]
    assert list(told["unread"]) == ["a.example/logo.png"]
    assert told["pages"]["left_out"] == {"empty": 1}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none", "there is nothing of that name"),
        ("a.zip", "is no source"),
        ("empty", "Nothing to harvest"),
        ("a.txt", "Nothing to harvest"),
    ],
)
def test_sources_that_are_none(tmp_path, capsys, name, told):
    (tmp_path / "a.zip").touch()
    (tmp_path / "a.txt").write_text("# no address\n")
    (tmp_path / "empty").mkdir()
    line = ["collect", "web", str(tmp_path / name), "--out", str(tmp_path / "out")]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


def test_a_corpus_of_somebody_else_stays(tmp_path, capsys):
    crawl(tmp_path / "a.warc.gz", langs=("en",), n=5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "en.jsonl").write_text('{"title": "Tea", "text": "Hot."}\n')
    assert (
        main(
            [
                "collect",
                "web",
                str(tmp_path / "a.warc.gz"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "was not harvested" in capsys.readouterr().err
    assert (tmp_path / "out" / "en.jsonl").exists()


def test_a_second_harvest_replaces_the_first(tmp_path):
    crawl(tmp_path / "a.warc.gz", langs=("en", "de"), n=5)
    harvest([tmp_path / "a.warc.gz"], tmp_path / "out", jobs=1)
    told = harvest([tmp_path / "a.warc.gz"], tmp_path / "out", ["de"], jobs=1)
    assert list(corpus_files(tmp_path / "out")) == ["de"]
    assert told["pages"]["left_out"]["in a language that was not asked for"] >= 5
    adds_up(told)


# ---- servers


class Site(ThreadingHTTPServer):
    "What it serves, and what it was asked for."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages = {}  # path: status, headers, body; or a function of the handler
        self.asked = []
        self.agents = set()
        self.base = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def page(self, path, i=0, lang="en", status=200, **headers):
        html = html_of(*sample(lang, i + 1)[i])
        self.pages[path] = (status, headers, html.encode())


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.agents.add(self.headers["User-Agent"])
        page = self.server.pages.get(self.path, (404, {}, b""))
        if callable(page):
            page = page(self)
            if page is None:
                return
        status, headers, body = page
        self.send_response(status)
        for name, value in ({"Content-Type": "text/html"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    server = Site()
    yield server
    server.shutdown()
    server.server_close()


HERE = Manners(delay=0, local=True)


class Clock:
    "A clock that stands still but for sleeping."

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(round(seconds, 3))
        self.now += seconds


def fetched(site, tmp_path, paths, manners=HERE, clock=None):
    clock = clock or Clock()
    addresses = [site.base + path for path in paths]
    return fetch_pages(addresses, tmp_path / "f.warc.gz", manners, clock, clock.sleep)


def test_robots_and_delays(site, tmp_path):
    rules = "User-agent: *\nDisallow: /private\nUser-agent: cmining\nDisallow: /ours\nCrawl-delay: 2.5"
    site.pages["/robots.txt"] = (200, {"Content_Type": "text/plain"}, rules.encode())
    for i, path in enumerate(["/1", "/2", "/ours/3", "/private/4"]):
        site.page(path, i)
    clock = Clock()
    counts = fetched(
        site,
        tmp_path,
        ["/1", "/2", "/ours/3", "/private/4"],
        HERE._replace(contact="me@a.example"),
        clock,
    )
    assert counts == {"page": 3, "refused: robots.txt does not allow it": 1}
    assert site.asked == ["/robots.txt", "/1", "/2", "/private/4"]
    assert clock.slept[:2] == [2.5, 2.5]
    assert all(
        agent.startswith("cmining/") and "me@a.example" in agent for agent in site.agents
    )


@pytest.mark.parametrize(
    ("status", "allowed"),
    [(404, True), (403, True), (500, False), (503, False), (429, False)],
)
def test_a_robots_txt_that_is_not_there(site, tmp_path, status, allowed):
    site.pages["/robots.txt"] = (status, {}, b"")
    site.page("/1")
    counts = fetched(site, tmp_path, ["/1"])
    assert counts == ({"page": 1} if allowed else {"robots.txt cannot be had": 1})
    assert ("/1" in site.asked) == allowed


def test_a_busy_server_is_waited_for(site, tmp_path):
    answers = iter([429, 503, 200])
    page = html_of(*sample("en", 1)[0]).encode()
    site.pages["/1"] = lambda handler: (next(answers), {"Retry-After": "7"}, page)
    site.pages["/never"] = (429, {"Retry-After": "99999"}, b"")
    site.pages["/always"] = (503, {}, b"")
    clock = Clock()
    counts = fetched(site, tmp_path, ["/1", "/never", "/always"], clock=clock)
    assert counts == {"page": 1, "server too busy": 2}
    assert clock.slept.count(7) == 2
    assert site.asked.count("/always") == 3
    assert site.asked.count("/never") == 1


def test_redirections(site, tmp_path):
    site.page("/end")
    for path, target in [
        ("/a", "/end"),
        ("/loop", "/loop"),
        ("/x", "/y"),
        ("/y", "/x"),
        ("/out", "ftp://a.example/"),
        ("/hidden", "http://user:pw@127.0.0.1:1/"),
        *((f"/hop{i}", f"/hop{i + 1}") for i in range(9)),
    ]:
        site.pages[path] = (302, {"Location": target}, b"")
    counts = fetched(site, tmp_path, ["/a", "/loop", "/x", "/out", "/hop0", "/end"])
    assert counts["page"] == 1
    assert counts["refused: redirected too often"] == 1
    assert counts["refused: redirected to no address"] == 1
    assert site.asked.count("/end") == 1
    assert "/hop5" in site.asked and "/hop6" not in site.asked
    before = len(site.asked)
    assert (
        fetched(site, tmp_path, ["/a", "/loop", "/x", "/out", "/hop0", "/end"]) == counts
    )
    assert len(site.asked) == before


def test_answers_that_are_no_pages(site, tmp_path):
    site.pages["/png"] = (200, {"Content-Type": "image/png"}, b"\x89PNG" * 99)
    site.pages["/gone"] = (410, {}, b"gone")
    site.pages["/big"] = (200, {}, b"a" * (9 << 20))
    site.pages["/trouble"] = (500, {}, b"")
    counts = fetched(site, tmp_path, ["/png", "/gone", "/big", "/trouble"])
    assert counts == {
        "refused: answer 410": 1,
        "refused: longer than 8 MiB": 1,
        "refused: no HTML": 1,
        "server in trouble": 1,
    }


def drip(handler):
    "An answer that comes one byte at a time, without an end."
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
    with pytest.raises(OSError):
        while True:
            handler.wfile.write(b"a")
            handler.wfile.flush()
            time.sleep(0.02)


def drip_head(handler):
    "Header lines without an end."
    with pytest.raises(OSError):
        for i in range(10**6):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n" if not i else b"X: y\r\n")
            handler.wfile.flush()
            time.sleep(0.05)


def test_slow_and_dead_servers(site, tmp_path):
    site.pages["/drip"] = drip
    site.pages["/head"] = drip_head
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        start = time.perf_counter()
        counts = fetch_pages(
            [f"{site.base}/drip", f"{site.base}/head", dead],
            tmp_path / "f.warc.gz",
            HERE._replace(seconds=0.5),
        )
    assert time.perf_counter() - start < 8
    assert counts == {"robots.txt cannot be had": 1, "server too slow": 2}
    assert read_archive(tmp_path / "f.warc.gz")[0] == {}  # the next run tries again


def test_no_address_of_this_machine(site, tmp_path, monkeypatch):
    site.page("/1")
    monkeypatch.setenv("NO_PROXY", "*")
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433"):
        address = f"http://{host}:{site.server_port}/1"
        counts = fetch_pages(
            [address], tmp_path / f"{len(host)}.warc.gz", Manners(delay=0)
        )
        assert "page" not in counts
    assert site.asked == []


def test_the_number_of_pages_is_kept(site, tmp_path):
    for i in range(6):
        site.page(f"/{i}", i)
    paths = [f"/{i}" for i in range(6)]
    counts = fetched(site, tmp_path, paths, HERE._replace(pages=2))
    assert counts == {"more than 2 pages": 4, "page": 2}
    assert fetched(site, tmp_path, paths, HERE._replace(pages=2)) == counts
    assert fetched(site, tmp_path, paths, HERE) == {"page": 6}
    assert sorted(site.asked) == [
        "/0",
        "/1",
        "/2",
        "/3",
        "/4",
        "/5",
        "/robots.txt",
        "/robots.txt",
    ]
    with pytest.raises(RunError, match="pages is at least 1"):
        fetched(site, tmp_path, paths, HERE._replace(pages=0))


def test_an_archive_that_was_cut_is_mended(site, tmp_path):
    for i in range(4):
        site.page(f"/{i}", i)
    paths = [f"/{i}" for i in range(4)]
    fetched(site, tmp_path, paths)
    archive = tmp_path / "f.warc.gz"
    whole = archive.read_bytes()
    for cut in (1, 100, len(whole) // 2, len(whole) - 1):
        archive.write_bytes(whole[:cut])
        assert fetched(site, tmp_path, paths) == {"page": 4}
        pages = [page.address for page in member_pages(archive, 0, 10**9, Counter())]
        assert sorted(pages) == [site.base + path for path in paths]


def test_addresses_become_a_corpus(site, tmp_path):
    licence = (
        '<link rel="license" href="https://creativecommons.org/publicdomain/zero/1.0/">'
    )
    for i in range(5):
        html = html_of(*sample("en", i + 1)[i], head=licence)
        site.pages[f"/{i}"] = (
            200,
            {"Content-Encoding": "gzip"},
            gzip.compress(html.encode()),
        )
    listed = (
        "\ufeff# our list\n"
        + "\n".join(f"{site.base}/{i}" for i in range(5))
        + "\nno address\n"
    )
    (tmp_path / "list.txt").write_text(listed, encoding="utf-8")
    told = harvest(
        [tmp_path / "list.txt", f"{site.base}/0"], tmp_path / "out", jobs=1, manners=HERE
    )
    assert told["fetched"] == {"no address of the web": 1, "page": 5}
    assert told["licences"] == {"CC0-1.0": 5}
    before = corpus_bytes(tmp_path / "out")
    n_asked = len(site.asked)
    harvest(
        [tmp_path / "list.txt", f"{site.base}/0"], tmp_path / "out", jobs=1, manners=HERE
    )
    assert corpus_bytes(tmp_path / "out") == before
    assert len(site.asked) == n_asked


# ---- kills, and what mining makes of it

KILLED = """
import sys
from cmining.collect import web
web.STRETCH = 20_000
web.harvest([sys.argv[1]], sys.argv[2], jobs=1)
"""


def test_kill_and_go_on(tmp_path):
    crawl(tmp_path / "a.warc.gz", langs=("de", "en"), n=60)
    harvest([tmp_path / "a.warc.gz"], tmp_path / "whole", jobs=1)
    out = tmp_path / "killed"
    parts = out / ".web" / "parts"
    command = [sys.executable, "-c", KILLED, tmp_path / "a.warc.gz", out]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 100
    while not [p for p in parts.glob("*") if not p.name.startswith(".")]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("[!.]*")}
    assert done and not (out / "manifest.json").exists()
    done_again = []

    def remember(target, *args):
        done_again.append(target)
        return extract(target, *args)

    extract = web.extract_part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "STRETCH", 20_000)
        patch.setattr(web, "extract_part", remember)
        harvest([tmp_path / "a.warc.gz"], out, jobs=1)
    assert not {path.name for path in done} & {t.name.split(".")[1] for t in done_again}
    assert corpus_bytes(out) == corpus_bytes(tmp_path / "whole")
    assert not parts.exists()


def test_mine_reads_it(tmp_path):
    licence = '<link rel="license" href="https://creativecommons.org/licenses/by/4.0/">'
    records = []
    for lang in ("de", "en", "ja"):
        for i, (title, paragraphs) in enumerate(sample(lang)):
            page = html_of(title, paragraphs, head=licence if lang == "ja" else "")
            records.append(record(f"http://{lang}.example/{i}", answer(page)))
    (tmp_path / "a.warc.gz").write_bytes(packed(*records))
    harvest([tmp_path / "a.warc.gz"], tmp_path / "corpus", jobs=1)
    points = mine_corpus(tmp_path / "corpus", tmp_path / "run", jobs=1, quiet=True)
    entries = {
        row["id"]: row
        for lang in ("de", "en", "ja")
        for row in rows(tmp_path / "corpus", lang)
    }
    assert len(points) > 10
    assert set(points["id"]) <= set(entries)
    for record_ in mined_records(tmp_path / "run", licence="CC0-1.0"):
        (lang,) = record_.labels
        assert record_.licence == ("CC-BY-4.0" if lang == "ja" else "CC0-1.0")
        assert f"http://{lang}.example/" in record_.evidence[0]
        assert not record_.titles
