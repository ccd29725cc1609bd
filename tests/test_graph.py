"""Collecting from a graph: a generated dump of 100,000 items, broken files, an endpoint, merging."""

import bz2
import gzip
import json
import random
import re
import threading
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmining.cli import main
from cmining.collect.graph import (
    ASPECTS,
    CUBE,
    DumpGraph,
    GraphSource,
    SparqlGraph,
    Walk,
    extract_graph,
)
from cmining.collect.merge import merge_folders, merge_records, read_merged
from cmining.collect.records import (
    Record,
    Request,
    collect_records,
    country_code,
    read_about,
    read_records,
)
from cmining.core.basics import CorpusError, RunError
from cmining.ingest.links import read_links
from cmining.ingest.wikidata import scan_item, targets, unpack_blocks

ROOT = Path(__file__).parent.parent
TOY = ROOT / "data" / "graph" / "toy.json"
GOLD = ROOT.parent / "shared" / "data" / "gold" / "cube_1k.json"
LANGS = ("de", "en", "es", "fr", "ja", "zh")
COUNTRIES = {17: "JP", 155: "BR", 183: "DE", 1033: "NG", 12560: None}
ROOTS = {"cuisine": ("Q2095",), "clothing": ("Q11460",)}


def statement(prop, value, rank="normal", snak="value", **more):
    main = {"snaktype": snak, "property": prop}
    if snak == "value" and isinstance(value, int):
        value = {"entity-type": "item", "numeric-id": value, "id": f"Q{value}"}
    if snak == "value":
        main["datavalue"] = {"value": value, "type": "wikibase-entityid"}
    return {"mainsnak": main, "type": "statement", "rank": rank, **more}


def entity(number, statements, labels=None, **more):
    claims = {}
    for one in statements:
        claims.setdefault(one["mainsnak"]["property"], []).append(one)
    labels = {k: {"language": k, "value": v} for k, v in (labels or {}).items()}
    sites = {"enwiki": {"site": "enwiki", "title": f"Thing {number}"}}
    return {
        "type": "item",
        "id": f"Q{number}",
        "labels": labels,
        "descriptions": {},
        "claims": claims,
        "sitelinks": sites if number % 3 == 0 else {},
        **more,
    }


class Planted:
    "A generated graph: what is to be found in it, and what is not."

    def __init__(self, n_items: int, seed: int = 0) -> None:
        self.draw = random.Random(seed)
        self.next = 10_000_000
        self.lines: list[str] = []
        self.artifacts: dict[int, tuple[set[int], str]] = {}  # countries, aspect
        self.broken = 0
        for number, code in COUNTRIES.items():
            of = [statement("P17", number)]
            of += [statement("P297", code)] if code else []
            self.add(entity(number, of, {"en": f"Country {number}"}))
        self.classes = {a: self.grow_classes(int(r[0][1:])) for a, r in ROOTS.items()}
        for aspect, levels in self.classes.items():
            for _ in range(n_items // 80):
                self.plant(aspect, levels)
            for _ in range(n_items // 200):
                self.add_trap(levels)
        while len(self.lines) < n_items:
            self.add_filler()
        self.draw.shuffle(self.lines)

    def new(self) -> int:
        self.next += self.draw.randint(1, 9)
        return self.next

    def add(self, record) -> None:
        spaced = self.draw.random() < 0.2
        separators = (", ", ": ") if spaced else (",", ":")
        is_ascii = self.draw.random() < 0.5
        self.lines.append(
            json.dumps(record, ensure_ascii=is_ascii, separators=separators)
        )

    def grow_classes(self, root: int) -> list[list[int]]:
        "Three levels of classes without a country, with circles and redirects."
        levels = [[root]]
        for _ in range(3):
            level = []
            for _ in range(40):
                number = self.new()
                of = [statement("P279", self.draw.choice(levels[-1]))]
                if self.draw.random() < 0.3:  # a circle
                    of.append(statement("P279", self.draw.choice(level or [number])))
                if self.draw.random() < 0.2:  # a country that nobody knows
                    of.append(statement("P495", 0, snak="somevalue"))
                self.add(entity(number, of, {"en": f"class {number}"}))
                level.append(number)
                if self.draw.random() < 0.3:
                    old, older = self.new(), self.new()
                    self.lines.append(
                        json.dumps({"entity": f"Q{old}", "redirect": f"Q{number}"})
                    )
                    self.lines.append(
                        json.dumps({"entity": f"Q{older}", "redirect": f"Q{old}"})
                    )
                    level.append(older)
            levels.append(level)
        self.add(entity(root, [statement("P279", levels[1][0])], {"en": "root"}))
        return levels

    def plant(self, aspect: str, levels: list[list[int]]) -> None:
        number = self.new()
        parent = self.draw.choice(self.draw.choice(levels[:3]))
        countries = set(self.draw.sample(list(COUNTRIES), self.draw.randint(1, 2)))
        of = [statement(self.draw.choice(["P31", "P279"]), parent)]
        for country in sorted(countries):
            rank = self.draw.choice(["normal", "preferred"])
            of.append(statement(self.draw.choice(["P495", "P17"]), country, rank))
        if self.draw.random() < 0.2:
            wrong = self.draw.choice([c for c in COUNTRIES if c not in countries] or [17])
            rank = "deprecated" if wrong not in countries else "normal"
            of.insert(0, statement("P495", wrong, rank))
        if self.draw.random() < 0.2:
            of.append(
                statement("P17", 0, snak=self.draw.choice(["somevalue", "novalue"]))
            )
        labels = {"en": f'dish {number} {{"P31":[', "ja": f"料理{number}"}
        if self.draw.random() < 0.1:
            labels = {}
        self.add(entity(number, of, labels))
        self.artifacts[number] = (countries, aspect)

    def add_trap(self, levels: list[list[int]]) -> None:
        "An item that is no artifact, though it looks like one."
        number = self.new()
        parent = self.draw.choice(levels[1])
        kind = self.draw.randrange(4)
        if kind == 0:  # the country is deprecated
            of = [statement("P31", parent), statement("P495", 17, "deprecated")]
        elif kind == 1:  # the class is
            of = [statement("P31", parent, "deprecated"), statement("P495", 17)]
        elif kind == 2:  # too far down
            of = [statement("P31", self.draw.choice(levels[3])), statement("P17", 17)]
        else:  # class and country of a qualifier
            snak = statement("P31", parent)["mainsnak"]
            more = {"qualifiers": {"P31": [snak], "P17": [snak]}}
            of = [statement("P31", 5, **more), statement("P17", 17)]
        self.add(entity(number, of, {"en": f"trap {number}"}))

    def add_filler(self) -> None:
        number = self.new()
        of = [statement("P31", self.draw.choice([5, 515, 13442814]))]
        if self.draw.random() < 0.2:
            of.append(statement("P17", self.draw.choice(list(COUNTRIES))))
        line = json.dumps(entity(number, of, {"en": f"thing {number}"}))
        if self.draw.random() < 0.01:
            self.broken += 1
            line = self.draw.choice(
                [line[: len(line) // 2], line[:-1], "{" + line, "null", "\x00" + line[9:]]
            )
        self.lines.append(line)

    def dump(self) -> bytes:
        return ("[\n" + ",\n".join(self.lines) + "\n]\n").encode()


@pytest.fixture(scope="module")
def planted():
    return Planted(100_000)


@pytest.fixture(scope="module")
def extract(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    dump = folder / "dump.json.gz"
    dump.write_bytes(gzip.compress(planted.dump(), 1))
    extract_graph(dump, folder / "graph", ("en", "ja"), jobs=2)
    return folder / "graph"


def test_all_planted_artifacts_and_nothing_else(planted, extract):
    assert len(planted.lines) >= 100_000
    graph = DumpGraph(extract)
    assert graph.about["counts"]["broken line"] == planted.broken > 500
    counts = Counter()
    records = GraphSource(graph, Walk(ROOTS)).records(Request(langs=("en", "ja")), counts)
    found = {int(record.qid[1:]): record for record in records}
    missing = planted.artifacts.keys() - found.keys()
    assert len(missing) <= 0.05 * len(planted.artifacts)  # the claim …
    assert found.keys() == planted.artifacts.keys()  # … and the rest of it
    for number, (countries, aspect) in planted.artifacts.items():
        codes = {COUNTRIES[c] or f"Q{c}" for c in countries}
        assert set(found[number].countries) == codes
        assert found[number].aspect == aspect
        words = found[number].evidence[0].removeprefix(f"{aspect}: ").split()
        assert words[0] == f"Q{number}" and words[-1] == ROOTS[aspect][0]
        assert 3 <= len(words) <= 7
    nameless = [r for r in found.values() if r.artifact == r.qid]
    assert counts["artifact without a name in these languages"] == len(nameless) > 0


def test_same_records_however_the_dump_is_packed_and_read(tmp_path):
    few = Planted(4_000, seed=1)
    text = few.dump()
    outs = []
    streams = b"".join(
        bz2.compress(text[i : i + 99_991]) for i in range(0, len(text), 99_991)
    )
    for name, data, jobs in [
        ("a.json", text, 1),
        ("b.json.gz", gzip.compress(text), 2),
        ("c.json.bz2", bz2.compress(text, 1), 1),
        ("d.json.bz2", bz2.compress(text, 9), 2),
        ("e.json.bz2", streams, 2),
    ]:
        (tmp_path / name).write_bytes(data)
        folder = tmp_path / name[0]
        extract_graph(tmp_path / name, folder / "graph", ("en", "ja"), jobs)
        source = GraphSource(DumpGraph(folder / "graph"), Walk(ROOTS))
        collect_records(source, Request(langs=("en", "ja")), folder)
        outs.append((folder / "records.parquet").read_bytes())
    assert len(set(outs)) == 1


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gz", "bz2"])
def test_a_file_that_breaks_off_keeps_what_was_whole(tmp_path, pack):
    few = Planted(3_000, seed=2)
    data = pack(few.dump(), 1)
    name = "cut.json.gz" if pack is gzip.compress else "cut.json.bz2"
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    record = extract_graph(tmp_path / name, tmp_path / "graph", ("en",), jobs=1)
    assert 1_000 < record["counts"]["items"] < 3_000
    assert any("cut off" in k or "damaged" in k for k in record["counts"])


def test_no_dump(tmp_path):
    for name, data in [
        ("empty.json", b""),
        ("page.json", b"<html>no</html>"),
        ("rows.json", b'{"title": "Tea"}\n'),
        ("bad.json.gz", b"no gzip"),
        ("bad.json.bz2", b"BZh9 no bzip2"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorpusError, match="has no item of Wikidata"):
            extract_graph(tmp_path / name, tmp_path / "graph", ("en",))
        assert not (tmp_path / "graph").exists()
    with pytest.raises(CorpusError, match="No dump at"):
        extract_graph(tmp_path / "nowhere.json", tmp_path / "graph", ("en",))
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "graph.json").write_text("{}")
    with pytest.raises(CorpusError, match="is no extract of a dump"):
        DumpGraph(tmp_path / "graph")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.just("P31"), inner, max_size=3)
    ),
    max_leaves=8,
)
STATEMENT = st.builds(
    lambda n, rank, junk: statement(
        "P31", n, rank, qualifiers={"P31": [junk], "x": junk}
    ),
    st.integers(1, 10**9),
    st.sampled_from(["normal", "preferred", "deprecated"]),
    JSON,
)


@settings(max_examples=60)
@given(st.lists(STATEMENT | JSON, max_size=4), JSON, JSON, st.booleans(), st.data())
def test_a_scanned_line_says_what_a_parsed_one_says(
    statements, label, other, spaced, data
):
    claims = {"P9": other, "P31": statements, "P17": [statement("P17", 17)]}
    parts = {"labels": {"en": {"value": str(label)}}, "claims": claims, "x": label}
    order = data.draw(st.permutations(list(parts)))
    item = {"type": "item", "id": "Q7", **{name: parts[name] for name in order}}
    line = json.dumps(item, separators=(", ", ": ") if spaced else (",", ":"))
    scanned = scan_item(line)
    for prop in ("P31", "P279", "P17"):
        if statements and not (
            isinstance(statements[0], dict) and "mainsnak" in statements[0]
        ):
            continue  # the first is no statement: not written by Wikidata
        assert targets(scanned.get("claims"), prop, Counter()) == targets(
            claims, prop, Counter()
        )
    assert scanned["labels"] == item["labels"]


@settings(max_examples=15)
@given(st.binary(max_size=40), st.integers(1, 9), st.integers(0, 10**6))
def test_any_bzip2_stream_in_blocks(seed, level, n):
    text = (seed or b"x") * 5_000 + zlib.crc32(seed).to_bytes(4, "big") * (n % 1000)
    text += random.Random(n).randbytes(150_000)
    data = bz2.compress(text[:100], 1) + bz2.compress(text, level)
    counts = Counter()
    got = b"".join(unpack_blocks(data, len(data), counts))
    assert (got, counts) == (text[:100] + text, {})


@pytest.mark.skipif(not GOLD.exists(), reason="../shared/data is not here")
def test_cube_1k_by_id(tmp_path):
    "CUBE-1K says of each artifact its classes and countries: a fragment of the graph it was drawn from."
    rows = [
        row for row in json.loads(GOLD.read_text("utf-8")) if row["id"].startswith("Q")
    ]
    ids = {
        key: {row["id"]: re.findall(r"Q\d+", row[key]) for row in rows}
        for key in ("P31", "P279", "P495", "P17")
    }
    lines = []
    for qid in ids["P31"]:
        of = [statement(p, int(q[1:])) for p in ids for q in ids[p][qid]]
        lines.append(json.dumps(entity(int(qid[1:]), of, {"en": qid})))
    dump = tmp_path / "cube.json"
    dump.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    extract_graph(dump, tmp_path / "graph", ("en",), jobs=1)
    source = GraphSource(DumpGraph(tmp_path / "graph"), CUBE)
    found = {r.qid: r for r in source.records(Request(), Counter())}
    domains = {row["id"]: row["domain"] for row in rows}
    # no landmark of the file has an id; twelve of its landscapes, which we count among them, have
    aspects = {"cuisine": "cuisine", "art": "art", "landscapes": "landmarks"}
    for domain, share in [("cuisine", 0.45), ("art", 0.75), ("landscapes", 0.8)]:
        # those that hang on a root directly; of the others the fragment lacks the classes
        near = {
            qid
            for qid, of in domains.items()
            if of == domain
            and {*ids["P31"][qid], *ids["P279"][qid]} & {*CUBE.roots[aspects[domain]]}
            and (ids["P495"][qid] or ids["P17"][qid])
        }
        assert near and near <= found.keys()
        of_domain = [q for q, of in domains.items() if of == domain]
        assert len(near) > share * len(of_domain)
    by_country = {row["id"]: set() for row in rows}
    for row in rows:
        by_country[row["id"]].add(country_code(row["country"]))
    agree = [bool(by_country[qid] & set(r.countries)) for qid, r in found.items()]
    assert all(agree)


def test_extract_serves_other_aspects_and_countries(extract, planted):
    graph = DumpGraph(extract)
    request = Request(("BR",), ("clothing",), ("en",))
    records = list(GraphSource(graph, Walk(ROOTS)).records(request, Counter()))
    wanted = {
        n for n, (of, a) in planted.artifacts.items() if 155 in of and a == "clothing"
    }
    assert {int(r.qid[1:]) for r in records} == wanted
    with pytest.raises(RunError, match="no item of the graph has the country code FJ"):
        list(GraphSource(graph, Walk(ROOTS)).records(Request(("Fiji",)), Counter()))


def test_hostile_items(tmp_path):
    "Values of any kind in any place cost a statement or a line, never the run."
    odd = [1, "x", None, True, [], {}, [1], {"id": 5}, {"id": "Q" + "9" * 30}, -1]
    lines = ["[" * 5000, '{"id":"Q1","claims":' + '{"a":' * 5000]
    for value in odd:
        snak = {"mainsnak": {"snaktype": "value", "datavalue": {"value": value}}}
        for claims in (value, {"P31": value}, {"P31": [value]}, {"P31": [snak]}):
            more = [statement("P17", 17)]
            item = entity(8, more) | {"labels": value, "sitelinks": value}
            item["claims"] = (
                item["claims"] | claims if isinstance(claims, dict) else claims
            )
            lines.append(json.dumps(item))
            lines.append(json.dumps({"entity": value, "redirect": value}))
    good = entity(
        9, [statement("P31", 2095), statement("P17", 17)], {"en": "a\u202e\ud800b"}
    )
    lines.append(json.dumps(good))
    (tmp_path / "odd.json").write_text("\n".join(lines))
    extract_graph(tmp_path / "odd.json", tmp_path / "graph", ("en",), jobs=1)
    source = GraphSource(DumpGraph(tmp_path / "graph"), Walk(ROOTS))
    (record,) = source.records(Request(), Counter())
    assert (record.qid, record.artifact, record.countries) == ("Q9", "ab", ("JP",))


class Endpoint(BaseHTTPRequestHandler):
    "Fails as told: a list of statuses, or an answer that breaks off."

    failures: list[int] = []
    asked: list[str] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.asked.append(parse_qs(body)["query"][0])
        status = self.failures.pop(0) if self.failures else 200
        data = json.dumps({"results": {"bindings": []}}).encode()
        self.send_response(status)
        if status in (429, 503):
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Endpoint.failures, Endpoint.asked = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/sparql"
    server.shutdown()


def test_a_busy_endpoint_is_asked_again(endpoint):
    Endpoint.failures = [429, 503]
    graph = SparqlGraph(endpoint, pause=0)
    assert len(graph.children(np.array([2095], np.uint32))) == 0
    assert len(Endpoint.asked) == 3


def test_a_question_that_is_too_large_is_asked_in_halves(endpoint):
    Endpoint.failures = [500]
    graph = SparqlGraph(endpoint, pause=0)
    graph.children(np.arange(1, 9, dtype=np.uint32))
    assert [q.count("wd:Q") for q in Endpoint.asked] == [8, 4, 4]


def test_an_endpoint_that_refuses_says_so(endpoint):
    Endpoint.failures = [403] * 99
    with pytest.raises(CorpusError, match="403 Forbidden.*collect from a dump"):
        SparqlGraph(endpoint, pause=0).children(np.array([2095, 1], np.uint32))
    with pytest.raises(CorpusError, match="ConnectionError"):
        SparqlGraph("http://127.0.0.1:9/sparql", pause=0).children(
            np.array([1], np.uint32)
        )


def test_commands(tmp_path, capsys):
    out, merged = tmp_path / "graph", tmp_path / "merged"
    langs = ",".join(LANGS)
    assert main(["collect", "graph", str(TOY), "--langs", langs, "--out", str(out)]) == 0
    assert "24 artifacts" in capsys.readouterr().out
    assert read_about(out)["records"] == 24
    extract = str(out / "graph")
    again = ["collect", "graph", extract, "--langs", langs, "--countries", "Japan,Q96"]
    assert main([*again, "--aspects", "cuisine", "--out", str(tmp_path / "few")]) == 0
    few = list(read_records(tmp_path / "few"))
    assert {c for r in few for c in r.countries} == {"JP", "MX"}
    assert {r.aspect for r in few} == {"cuisine"}
    assert (
        main(["collect", "merge", str(out), str(tmp_path / "few"), "--out", str(merged)])
        == 0
    )
    assert len(read_merged(merged)) == 24
    seeds = pd.read_parquet(merged / "seeds" / "seeds.parquet")
    assert list(seeds) == ["id", "lang", "culture", "topic", "text", "source", "licence"]
    assert seeds["id"].is_unique and set(seeds["lang"]) == set(LANGS)
    links = list(read_links(merged / "counterparts.tsv", LANGS))
    assert len(links) == json.loads((merged / "run.json").read_text())["counterparts"]
    capsys.readouterr()
    for words, told in [
        ([*again, "--countries", "Atlantis", "--out", str(out)], "no country is called"),
        (
            [*again, "--aspects", "sport", "--out", str(out)],
            "no roots for aspect 'sport'",
        ),
        (
            ["collect", "graph", "nowhere.json", "--out", str(out)],
            "No dump at nowhere.json",
        ),
        (["collect", "merge", str(tmp_path), "--out", str(merged)], "No records at"),
    ]:
        assert main(words) == 2
        assert told in capsys.readouterr().err


def test_a_walk_of_ones_own(tmp_path, capsys):
    words = ["--roots", "stews=Q4000000102", "--langs", "en,fr", "--out", str(tmp_path)]
    assert main(["collect", "graph", str(TOY), *words]) == 0
    records = list(read_records(tmp_path))
    assert {(r.artifact, r.aspect) for r in records} == {
        ("Gumbo", "stews"),
        ("Labskaus", "stews"),
    }


def test_merge_is_the_same_in_any_order(tmp_path):
    draw = random.Random(0)
    records = [
        Record(
            draw.choice("abcdef"),
            draw.choice([None, None, "Q1", "Q2", "Q3"]),
            (draw.choice(["BR", "JP"]),),
            draw.choice(["cuisine", "art"]),
            source=draw.choice(["graph", "model", "mined", "community"]),
            evidence=(str(i),),
            review=draw.choice(["open", "open", "accepted", "rejected", "withdrawn"]),
        )
        for i in range(60)
    ]
    first = merge_records(records)
    for _ in range(5):
        draw.shuffle(records)
        assert merge_records(records) == first
    kept = [r for r in records if r.review != "withdrawn"]
    evidence = [text for row in first for text in row.evidence]
    assert sorted(evidence) == sorted(f"{r.source}: {r.evidence[0]}" for r in kept)


def test_merge_writes_the_same_bytes(tmp_path):
    out = tmp_path / "graph"
    extract_graph(TOY, out / "graph", LANGS, jobs=1)
    source = GraphSource(DumpGraph(out / "graph"), Walk(ASPECTS))
    for name in ("one", "two"):
        request = Request(("JP", "MX") if name == "one" else ("MX", "FR"), langs=LANGS)
        collect_records(source, request, tmp_path / name)
    merge_folders([tmp_path / "one", tmp_path / "two"], tmp_path / "a")
    merge_folders([tmp_path / "two", tmp_path / "one"], tmp_path / "b")
    for file in (
        "merged.parquet",
        "seeds/seeds.parquet",
        "counterparts.tsv",
        "conflicts.csv",
    ):
        assert (tmp_path / "a" / file).read_bytes() == (
            tmp_path / "b" / file
        ).read_bytes()
    assert pq.read_metadata(tmp_path / "a" / "merged.parquet").num_rows > 10
