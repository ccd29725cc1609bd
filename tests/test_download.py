"""Downloading from a local server that is laid out and misbehaves like the real ones."""

import errno
import hashlib
import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cmining.core.basics import CorpusError
from cmining.ingest.download import (
    RemoteFile,
    describe_download,
    download_wikipedia,
    fetch,
    plan_download,
    wikipedia_lang,
)

DATA = bytes(range(256)) * 2000  # 512,000 bytes
SHA256 = "sha256:" + hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    "What it serves, how it misbehaves, and what it was asked for."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages = {}  # path: bytes
        self.links = {}  # path: the Link header of its answer
        self.faults = {}  # path: functions of the handler, one an answer
        self.asked = []  # method, path, Range and If-Range of each request
        self.ranges = True
        self.etag = lambda body: f'"{hashlib.md5(body).hexdigest()}"'
        self.honours_if_range = True
        self.base = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        path = self.path
        wanted = self.headers.get("Range")
        condition = self.headers.get("If-Range")
        server.asked.append((self.command, path, wanted, condition))
        self.cut = None
        if server.faults.get(path) and server.faults[path].pop(0)(self):
            return
        if path not in server.pages:
            return self.answer(404, b"nothing here")
        body = server.pages[path]
        tag = server.etag(body)
        headers = {}
        if tag:
            headers["ETag"] = tag
        if path in server.links:
            headers["Link"] = server.links[path]
        is_same = condition in (None, tag) or not server.honours_if_range
        if wanted and server.ranges and is_same:
            start = int(wanted[6:-1])
            if start >= len(body):
                return self.answer(416, b"", headers)
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.answer(206, body[start:], headers)
        self.answer(200, body, headers)

    do_HEAD = do_GET

    def answer(self, status, body, headers={}):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: self.cut])
        if self.cut is not None:
            self.close_connection = True
        return True

    def log_message(self, *args):
        pass


def cut(at):
    "Hang up after so many bytes of the body."

    def fault(handler):
        handler.cut = at

    return fault


def refuse(status, **headers):
    "Answer with a status, and headers whose name is written with _."
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(status, b"later", headers)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def naps(monkeypatch):
    "Nobody sleeps; how long each would have is kept."
    naps = []
    monkeypatch.setattr("time.sleep", lambda seconds: naps.append(seconds))
    return naps


def put(server, body=DATA, checksum=SHA256, name="a.parquet"):
    server.pages[f"/{name}"] = body
    return RemoteFile(name, f"{server.base}/{name}", len(body), checksum)


def listing(*links):
    return "".join(f'<a href="{link}">{link}</a>' for link in links).encode()


def lay_out_wikimedia(server):
    index = "/other/cirrus_search_index"
    server.pages[f"{index}/"] = listing("../", "20260913/", "20260920/")
    server.pages[f"{index}/20260920/"] = listing(
        "index_name%3Djawiki_content/",
        "index_name%3Djawiki_general/",
        "index_name%3Dzh_min_nanwiki_content/",
    )
    folder = f"{index}/20260920/index_name%3Djawiki_content"
    names = [f"jawiki_content-20260920-0000{i}.json.bz2" for i in range(3)]
    server.pages[f"{folder}/"] = listing(
        "../", "_SUCCESS", "evil.json.bz2", "..%2F..%2Fevil", *names
    )
    for i, name in enumerate(names):
        server.pages[f"{folder}/{name}"] = DATA[: 1000 * (i + 1)]
    name = "jawiki-20260901-pages-articles-multistream"
    files = {f"{name}.xml.bz2": DATA, f"{name}-index.txt.bz2": DATA[:99]}
    server.pages["/backup-index.html"] = listing("jawiki/20260901", "dewiki/20260901")
    server.pages["/jawiki/"] = listing("20260901/", "latest/")
    listed = {}
    for name, body in files.items():
        server.pages[f"/jawiki/20260901/{name}"] = body
        listed[name] = {
            "size": len(body),
            "url": f"/jawiki/20260901/{name}",
            "md5": hashlib.md5(body).hexdigest(),
            "sha1": hashlib.sha1(body).hexdigest(),
        }
    jobs = {"articlesmultistreamdump": {"status": "done", "files": listed}}
    server.pages["/jawiki/20260901/dumpstatus.json"] = json.dumps(
        {"version": "0.8", "jobs": jobs}
    ).encode()


def lay_out_hub(server):
    tree = "/api/datasets/wikimedia/wikipedia/tree/main"
    configs = [
        {"type": "directory", "oid": "0", "size": 0, "path": f"20231101.{lang}"}
        for lang in ("de", "ja", "zh-min-nan")
    ]
    server.pages[tree] = json.dumps(configs[:1]).encode()
    server.pages[f"{tree}?cursor=2"] = json.dumps(configs[1:]).encode()
    # a long listing comes in pages
    server.links[tree] = f'<{server.base}{tree}?cursor=2>; rel="next"'
    shards = [f"20231101.ja/train-0000{i}-of-00002.parquet" for i in range(2)]
    lfs = {"oid": SHA256[7:], "size": len(DATA), "pointerSize": 134}
    file = {"type": "file", "oid": "0", "size": len(DATA), "lfs": lfs}
    server.pages[f"{tree}/20231101.ja"] = json.dumps(
        [file | {"path": shard} for shard in shards]
    ).encode()
    for shard in shards:
        page = f"/datasets/wikimedia/wikipedia/resolve/main/{shard}"
        # the real bytes are elsewhere
        elsewhere = f"/cdn/{shard[12:]}?signature=x"
        server.faults[page] = [refuse(302, Location=server.base + elsewhere)] * 9
        server.pages[elsewhere] = DATA


def lay_out(server):
    lay_out_wikimedia(server)
    lay_out_hub(server)


@pytest.mark.parametrize(
    "source, folder, names, total",
    [
        (
            "cirrus",
            "wikipedia-ja-cirrus-20260920",
            [f"jawiki_content-20260920-0000{i}.json.bz2" for i in range(3)],
            6000,
        ),
        (
            "xml",
            "wikipedia-ja-xml-20260901",
            [
                "jawiki-20260901-pages-articles-multistream-index.txt.bz2",
                "jawiki-20260901-pages-articles-multistream.xml.bz2",
            ],
            512_099,
        ),
        (
            "hf",
            "wikipedia-ja-hf-20231101",
            [f"train-0000{i}-of-00002.parquet" for i in range(2)],
            1_024_000,
        ),
    ],
)
def test_each_source(server, tmp_path, capsys, source, folder, names, total):
    lay_out(server)
    plan = plan_download("wikipedia:ja", source, base_url=server.base)
    assert [file.name for file in plan.files] == names
    assert sum(file.size for file in plan.files) == total

    got = download_wikipedia(
        "wikipedia:ja", source, tmp_path, base_url=server.base, quiet=False
    )
    assert got == tmp_path / folder
    assert sorted(path.name for path in got.iterdir()) == names
    assert sum(path.stat().st_size for path in got.iterdir()) == total
    # how much is said first
    assert f"{len(names)} files" in capsys.readouterr().err.splitlines()[0]

    server.asked.clear()
    again = download_wikipedia("wikipedia:ja", source, tmp_path, base_url=server.base)
    assert again == got
    fetched = [path for method, path, *_ in server.asked if method == "GET"]
    assert not set(names) & {path.rpartition("/")[2] for path in fetched}


@pytest.mark.parametrize(
    "variable, source", [("CMINING_DUMPS_URL", "xml"), ("HF_ENDPOINT", "hf")]
)
def test_a_mirror_from_the_environment(server, monkeypatch, variable, source):
    lay_out(server)
    monkeypatch.setenv(variable, server.base + "/")
    plan = plan_download("wikipedia:ja", source)
    assert plan.files[0].url.startswith(server.base + "/")


@pytest.mark.parametrize(
    "source, name, date, says",
    [
        ("cirrus", "wikipedia:jb", None, "'jb'.*there is ja"),
        ("xml", "wikipedia:jb", None, "'jb'.*there is ja"),
        ("hf", "wikipedia:jb", None, "'jb'.*there is ja"),
        ("cirrus", "wikipedia:ja", "20260913", "of 20260913"),
        ("xml", "wikipedia:ja", "20260101", "there is 20260901"),
        ("hf", "wikipedia:ja", "20220301", "there is 20231101"),
        ("hf", "wikipedia:ja", "../../x", "YYYYMMDD"),
        ("hf", "wikipedia:../x", None, "such as wikipedia:ja"),
        ("ftp", "wikipedia:ja", None, "hf, xml, cirrus"),
    ],
)
def test_what_is_not_there(server, source, name, date, says):
    lay_out(server)
    with pytest.raises(CorpusError, match=says):
        plan_download(name, source, date, server.base)


def test_a_language_with_hyphens(server):
    lay_out(server)
    with pytest.raises(
        CorpusError, match="whole search index of the Wikipedia 'zh-min-nan'"
    ):
        plan_download("wikipedia:zh-min-nan", "cirrus", base_url=server.base)
    assert any(
        "index_name%3Dzh_min_nanwiki_content" in path for _, path, *_ in server.asked
    )


def test_a_cut_connection_goes_on(server, tmp_path):
    file = put(server)
    server.faults["/a.parquet"] = [cut(200_000), cut(150_000), cut(0)]
    assert fetch(file, tmp_path).read_bytes() == DATA
    first, second, third, fourth = [
        int(wanted[6:-1]) if wanted else 0 for _, _, wanted, _ in server.asked
    ]
    assert 0 == first < 130_000 < second < third == fourth < len(DATA)
    assert all(tag == server.etag(DATA) for *_, tag in server.asked[1:])
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_an_interrupted_command_goes_on(server, tmp_path):
    file = put(server)
    server.faults["/a.parquet"] = [cut(200_000)] + [cut(0)] * 4
    with pytest.raises(CorpusError, match="breaks off at byte .* of 512,000"):
        fetch(file, tmp_path)
    assert not (tmp_path / "a.parquet").exists()
    server.asked.clear()
    assert fetch(file, tmp_path).read_bytes() == DATA
    ((_, _, wanted, _),) = server.asked
    assert wanted != "bytes=0-"


def test_a_killed_process_goes_on(server, tmp_path):
    file = put(server)
    killed = threading.Event()

    def stall(handler):  # half of the body, then silence
        handler.cut = len(DATA) // 2
        handler.answer(200, DATA, {"ETag": server.etag(DATA)})
        return killed.wait(60)

    server.faults["/a.parquet"] = [stall]
    code = (
        "from cmining.ingest.download import RemoteFile, fetch;"
        f" fetch(RemoteFile({file.name!r}, {file.url!r}, {file.size}, {file.checksum!r}),"
        f" {str(tmp_path)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / ".a.parquet.part"
    while process.poll() is None and not (
        part.exists() and part.stat().st_size > 100_000
    ):
        threading.Event().wait(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    killed.set()
    assert fetch(file, tmp_path).read_bytes() == DATA
    assert len(server.asked) == 2
    assert int(server.asked[-1][2][6:-1]) > 100_000


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_changed_file_is_not_glued(server, tmp_path, honours_if_range):
    new = DATA[::-1]
    file = put(server, checksum=None)
    server.honours_if_range = honours_if_range

    def changes(handler):
        server.pages["/a.parquet"] = new

    server.faults["/a.parquet"] = [cut(200_000), changes]
    assert fetch(file, tmp_path).read_bytes() == new


@pytest.mark.parametrize("checksum, starts_over", [(SHA256, False), (None, True)])
def test_without_a_validator_only_a_checksum_allows_going_on(
    server, tmp_path, checksum, starts_over
):
    file = put(server, checksum=checksum)
    server.etag = lambda body: None
    server.faults["/a.parquet"] = [cut(200_000)]
    assert fetch(file, tmp_path).read_bytes() == DATA
    assert (server.asked[1][2] is None) == starts_over


def test_a_weak_etag_is_no_validator(server, tmp_path):
    server.etag = lambda body: 'W/"same"'
    file = put(server, checksum=None)

    def changes(handler):
        server.pages["/a.parquet"] = DATA[::-1]

    server.faults["/a.parquet"] = [cut(200_000), changes]
    assert fetch(file, tmp_path).read_bytes() == DATA[::-1]


def test_a_server_without_ranges(server, tmp_path):
    file = put(server)
    server.ranges = False
    server.faults["/a.parquet"] = [cut(200_000)]
    assert fetch(file, tmp_path).read_bytes() == DATA


def test_a_wrong_checksum_is_tried_once_more(server, tmp_path):
    good = DATA
    damaged = b"\1" + DATA[1:]
    file = put(server)

    def damage(handler):
        server.pages["/a.parquet"] = damaged

    def mend(handler):
        server.pages["/a.parquet"] = good

    server.faults["/a.parquet"] = [damage, mend]
    assert fetch(file, tmp_path).read_bytes() == good
    server.faults["/a.parquet"] = [damage]
    server.asked.clear()
    with pytest.raises(CorpusError, match="came twice otherwise than listed.*sha256"):
        fetch(file, tmp_path / "other")
    assert len(server.asked) == 2
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(server, tmp_path, naps, caplog, status):
    file = put(server)
    server.faults["/a.parquet"] = [refuse(status, Retry_After="7")]
    assert fetch(file, tmp_path).read_bytes() == DATA
    assert 7 in naps
    assert "wait 7 s" in caplog.text


def test_a_refusal_that_lasts(server, tmp_path):
    file = put(server)
    server.faults["/a.parquet"] = [refuse(429, Retry_After="1")] * 9
    with pytest.raises(CorpusError, match="answers 429"):
        fetch(file, tmp_path)


def test_listed_but_not_there(server, tmp_path):
    with pytest.raises(CorpusError, match="not there .404."):
        fetch(put(server)._replace(url=server.base + "/b"), tmp_path)


def test_nobody_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(CorpusError, match="is there a network"):
        plan_download("wikipedia:ja", "xml", base_url="http://127.0.0.1:9")


def test_a_login_page_instead_of_json(server):
    server.pages["/api/datasets/wikimedia/wikipedia/tree/main"] = b"<html>Please log in"
    with pytest.raises(CorpusError, match="Please log in"):
        plan_download("wikipedia:ja", "hf", base_url=server.base)


def test_a_small_disk(server, tmp_path, monkeypatch):
    lay_out_wikimedia(server)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: type("Usage", (), {"free": 5000})
    )
    with pytest.raises(
        CorpusError, match="5 kB of free disk, but 6 kB are still to come"
    ):
        download_wikipedia(
            "wikipedia:ja", "cirrus", folder=tmp_path, base_url=server.base
        )


def test_a_disk_that_fills_up(server, tmp_path, monkeypatch):
    file = put(server)
    write = open

    class Full:
        def __init__(self, *args):
            self.f = write(*args)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.f.close()

        def write(self, piece):
            if self.f.tell() > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.f.write(piece)

    monkeypatch.setattr("cmining.ingest.download.open", Full, raising=False)
    with pytest.raises(CorpusError, match="No space left on device"):
        fetch(file, tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert fetch(file, tmp_path).read_bytes() == DATA
    assert server.asked[-1][2] not in (None, "bytes=0-")  # it went on


def test_what_is_here_already_is_said(server, tmp_path):
    lay_out_wikimedia(server)
    plan = plan_download("wikipedia:ja", "cirrus", base_url=server.base)
    fetch(plan.files[0], tmp_path)
    (tmp_path / f".{plan.files[1].name}.part").write_bytes(DATA[:500])
    line = describe_download(plan, tmp_path)
    assert "6 kB from" in line
    assert "2 kB of it are in" in line


def test_who_is_calling(server, tmp_path):
    "Wikimedia turns away clients that do not say who they are."
    agents = []
    server.faults["/a.parquet"] = [
        lambda handler: agents.append(handler.headers["User-Agent"])
    ]
    fetch(put(server), tmp_path)
    assert agents[0].startswith("cmining/")
    assert "https://" in agents[0]


@pytest.mark.parametrize(
    "code, lang",
    [("ja", "ja"), ("als", "als"), ("zh-min-nan", "nan"), ("zh-classical", "lzh")],
)
def test_languages_of_wikipedias(code, lang):
    assert wikipedia_lang(f"wikipedia:{code}") == lang


@pytest.mark.parametrize(
    "code, way_out",
    [("simple", "lang='en'"), ("be-tarask", "lang='be'"), ("nds-nl", "lang='nds'")],
)
def test_a_wikipedia_without_a_language_is_refused_before_the_download(code, way_out):
    with pytest.raises(CorpusError, match=way_out):
        wikipedia_lang(f"wikipedia:{code}")


@pytest.mark.parametrize(
    "name, code",
    [("EN", "en"), ("pt-BR", "pt"), ("zh_min_nan", "zh-min-nan"), ("zh-Hans", "zh")],
)
def test_a_code_that_is_none_is_refused_with_the_nearest(name, code):
    with pytest.raises(CorpusError, match=f"such as wikipedia:{code}"):
        plan_download(f"wikipedia:{name}")
