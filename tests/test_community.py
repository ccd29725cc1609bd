"""Contributions by people: rules, hostile input, a load of two hundred, kills, a browser."""

import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import quote

import pytest
import requests
from browser import Page, need_browser

from cmining.cli import main
from cmining.collect.community import (
    BODY_LIMIT,
    VERDICTS,
    VERSION,
    WORDS,
    Contribution,
    Limits,
    Refused,
    check_audit,
    contribute,
    erase_rejected,
    export_contributions,
    import_contributions,
    invite,
    make_app,
    new_code,
    next_to_review,
    open_contributions,
    own_contributions,
    review,
    withdraw,
)
from cmining.collect.merge import merge_folders, read_merged
from cmining.collect.records import read_records
from cmining.core.basics import CorpusError

HIDDEN = re.compile(r'name="(token|form)" value="(\w+)"')
EVIL = (
    "</textarea></bdi><script>document.title='owned'</script><img src=x onerror=alert(1)>"
)
HOSTILE = [
    EVIL,
    '" autofocus onfocus="document.title=1',
    "'; DROP TABLE contribution; --",
    "{{ 7 * 191 }} {% raw %}",
    "\u202egnp.exe\u202c und \u2066mehr\u2069",
    "Ta\x00mal \x1b[31m\x07",
    "=HYPERLINK(1)",
    "a\r\nSet-Cookie: code=1",
    "Z̸̢̛a̷l̵g̶o̴" * 5,
]
ATOLE = Contribution(
    "Atole", "es", ("MX",), "cuisine", "Bebida caliente de maíz.", "CC-BY-4.0"
)


def fields(page: str, **changes: str) -> dict[str, str]:
    "A form filled in."
    given = {
        "name": "Atole",
        "lang": "es",
        "country": "MX",
        "aspect": "cuisine",
        "description": "Bebida caliente de maíz.",
        "licence": "CC-BY-4.0",
        "consent": VERSION,
    }
    return given | dict(HIDDEN.findall(page)) | changes


@pytest.fixture
def db(tmp_path):
    with closing(open_contributions(tmp_path)) as db:
        yield db


@pytest.fixture
def visit(tmp_path):
    "Make a visitor of an application."
    pytest.importorskip("fastapi", reason="pip install 'cmining[community]'")
    from fastapi.testclient import TestClient

    app = make_app(tmp_path, Limits(writes=25, hints=20))
    return lambda: TestClient(app)


# ---- the rules


@pytest.mark.parametrize("seed", range(8))
def test_whatever_people_do_the_rules_hold(db, seed):
    "Random acts of random people: what is refused changes nothing."
    rng = random.Random(seed)
    people = [*invite(db, 3), *(new_code() for _ in range(2))]
    owner: dict[str, str] = {}
    votes: dict[str, dict[str, str]] = {}
    gone = set()
    for step in range(120):
        who = rng.choice(people)
        act = rng.choice(["send", "review", "review", "review", "withdraw"])
        if act == "send":
            owner[contribute(db, who, ATOLE, form=str(step))] = who
            continue
        if not owner:
            continue
        id = rng.choice(list(owner))
        given = votes.setdefault(id, {})
        tally = Counter(verdict == "accept" for verdict in given.values())
        if act == "withdraw":
            if owner[id] == who and id not in gone:
                assert withdraw(db, who, id) == 1
                gone.add(id)
            else:
                with pytest.raises(Refused):
                    withdraw(db, who, id)
            continue
        verdict = rng.choice(["accept", *VERDICTS])
        invited = who in people[:3]
        decided = max(tally.values(), default=0) >= 2
        if invited and owner[id] != who and not decided and id not in gone:
            if who not in given:
                review(db, who, id, verdict)
                given[who] = verdict
                continue
        with pytest.raises(Refused):
            review(db, who, id, verdict)
    states = dict(tuple(row) for row in db.execute("SELECT id, status FROM contribution"))
    for id, state in states.items():
        n_for = sum(verdict == "accept" for verdict in votes.get(id, {}).values())
        if id in gone:
            assert state == "withdrawn"
        else:
            assert (state == "accepted") == (n_for == 2)
    assert check_audit(db) == []


def test_two_reviewers_at_the_same_time_decide_once(tmp_path, db):
    codes = invite(db, 6)
    ids = [contribute(db, new_code(), ATOLE, form=str(i)) for i in range(10)]

    def vote(code):
        with closing(open_contributions(tmp_path)) as own:
            for id in ids:
                try:
                    review(own, code, id, "accept")
                except Refused:
                    pass

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(vote, codes))
    counts = db.execute("SELECT count(*) FROM review GROUP BY contribution").fetchall()
    assert [n for (n,) in counts] == [2] * 10
    assert check_audit(db) == []


def test_the_trail_tells_what_was_changed_behind_it(db):
    ada, ben = invite(db)
    id = contribute(db, new_code(), ATOLE, form="1")
    review(db, ada, id, "accept")
    db.execute("UPDATE contribution SET status = 'accepted'")
    assert check_audit(db) == [f"contribution {id} is accepted, the trail says open"]
    db.execute("UPDATE contribution SET status = 'open'")
    assert check_audit(db) == []
    for change in ("UPDATE audit SET detail = 'wrong'", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="only added to"):
            db.execute(change)
    db.execute("DROP TRIGGER audit_no_update")
    db.execute("UPDATE audit SET detail = 'wrong' WHERE what = 'reviewed'")
    assert check_audit(db) == ["line 4 of the audit trail is not what was written"]


def test_what_is_withdrawn_is_in_no_file_and_no_export(tmp_path, db):
    ada, ben = invite(db)
    carla = new_code()
    ids = []
    for i, name in enumerate(["Zumaquequetzal", "Xocoatolli"]):
        id = contribute(db, carla, ATOLE._replace(name=name), form=str(i))
        for code in (ada, ben):
            review(db, code, id, "accept")
        ids.append(id)
    before = export_contributions(db, tmp_path / "before")
    assert (before["records"], before["withdrawn"]) == (2, [])
    withdraw(db, carla, ids[0])
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("contributions.*"))
    assert b"Xocoatolli" in stored
    assert b"umaquequetzal" not in stored
    after = export_contributions(db, tmp_path / "after")
    assert [r.artifact for r in read_records(tmp_path / "after")] == ["Xocoatolli"]
    assert after["withdrawn"] == [ids[0]]
    merge_folders([tmp_path / "after"], tmp_path / "merged")
    (row,) = read_merged(tmp_path / "merged")
    assert (row.sources, row.review, row.licence) == (
        ("community",),
        "accepted",
        "CC-BY-4.0",
    )
    assert check_audit(db) == []


def test_rejected_words_are_erased_when_their_time_is_over(db):
    ada, ben = invite(db)
    id = contribute(db, new_code(), ATOLE, form="1")
    for code in (ada, ben):
        review(db, code, id, "harmful")
    assert erase_rejected(db) == 0
    db.execute("UPDATE contribution SET decided = '2020-01-01'")
    assert erase_rejected(db) == 1
    row = db.execute("SELECT name, status FROM contribution").fetchone()
    assert tuple(row) == (None, "rejected")
    assert check_audit(db) == []


# ---- import


def test_bad_files_are_refused_whole(tmp_path, db):
    cases = {
        "empty.csv": (b"", "has no column name"),
        "latin.csv": ("name,lang\nCafé,es".encode("latin-1"), "no UTF-8"),
        "object.json": (b"{}", "no list of tasks"),
        "deep.json": (b"[" * 100_000, "Cannot import"),
        "cut.json": (b'[{"data": ', "Cannot import"),
    }
    for name, (data, told) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorpusError, match=told):
            import_contributions(db, tmp_path / name)
    odd = [None, 3, {"data": 3}, {"annotations": [None, {"result": [None, {}]}]}]
    odd += [{"data": {"name": ["x"]}, "annotations": [{"result": [{"value": 3}]}]}]
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    _, counts = import_contributions(db, tmp_path / "odd.json")
    assert counts["imported"] == 0 and sum(counts.values()) == 6
    assert db.execute("SELECT count(*) FROM contribution").fetchone()[0] == 0


def test_imported_rows_are_reviewed_like_all_others(tmp_path, capsys):
    folder = tmp_path / "people"
    names = "name,lang,country,aspect,description,licence,evidence"
    lines = [f"Sopa {i},es,CO;EC,cuisine,De maíz.,CC0-1.0,mi abuela" for i in range(30)]
    (tmp_path / "rows.csv").write_text("\n".join([names, *lines]), "utf-8-sig")
    assert not main(["collect", "import", str(folder), str(tmp_path / "rows.csv")])
    assert "30 imported" in capsys.readouterr().out
    assert not main(["collect", "invite", str(folder), "--reviewers", "2"])
    ada, ben = capsys.readouterr().out.split()[-2:]
    with closing(open_contributions(folder)) as db:
        for code in (ada, ben):
            while row := next_to_review(db, code, "es"):
                review(db, code, row["id"], "accept")
    out = tmp_path / "records"
    assert not main(["collect", "export", str(folder), "--out", str(out)])
    assert "30 accepted contributions" in capsys.readouterr().out
    records = list(read_records(out))
    assert {r.countries for r in records} == {("CO", "EC")}
    assert records[0].evidence[1] == "contributor: mi abuela"
    assert main(["collect", "export", str(tmp_path / "no"), "--out", str(out)]) == 2


# ---- the application


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_words_are_shown_as_words(tmp_path, visit, evil):
    pen, ada = visit(), visit()
    page = pen.get("/en/form").text
    sent = fields(page, name=evil[:120], description=evil + " x", evidence=evil)
    answer = pen.post("/en/form", data=sent)
    assert answer.status_code == 200, answer.text
    with closing(open_contributions(tmp_path)) as db:
        (row,) = own_contributions(db, pen.cookies["code"])
        ada.cookies.set("code", invite(db, 1)[0])
    assert row["name"].isprintable() and "\u202e" not in row["name"]
    queue = ada.get("/en/review")
    for shown in (answer.text, queue.text):
        assert "<script>document" not in shown and "<img src=x" not in shown
        assert 'onfocus="document' not in shown and "1337" not in shown
        assert "\x00" not in shown and "\u202e" not in shown
    bad = pen.post(
        "/en/form", data=fields(page, form="0" * 32, country=evil, name=evil[:120])
    )
    assert bad.status_code == 422
    assert "<script>document" not in bad.text and '" onfocus' not in bad.text
    assert pen.get("/en/hints", params={"name": evil}).status_code == 200
    assert pen.get(f"/{quote(evil[:20], safe='')}/form").status_code == 404


def test_too_much_and_too_odd_is_refused(tmp_path, visit):
    pen = visit()
    page = pen.get("/en/form").text
    large = pen.post("/en/form", data=fields(page, description="x" * 1_000_000))
    assert large.status_code == 413
    assert (
        pen.post("/en/form", content=iter([b"x" * 100])).status_code == 413
    )  # no length
    long = pen.post("/en/form", data=fields(page, description="x" * 1001))
    assert long.status_code == 422 and "Describe it" in long.text
    files = {"name": ("a.txt", b"x" * 1000)}
    for odd in (
        pen.post("/en/form", files=files, data=fields(page)),
        pen.post("/en/form", content=b"\xff\xfe=%ED%A0%80&token=\xff"),
        pen.post("/en/form", json=fields(page)),
        pen.post("/en/form", data=fields(page) | {f"x{i}": "1" for i in range(100)}),
        pen.post("/en/form", data=fields(page, consent="")),
        pen.post("/en/form", data=fields(page, form="'")),
        pen.put("/en/form", data=fields(page)),
        pen.get("/static/../words.toml"),
        pen.get("/static/%2e%2e/words.toml"),
        pen.get("/en/nothing"),
    ):
        assert 400 <= odd.status_code < 500, odd.request.url
    headers = {"content-type": "application/x-www-form-urlencoded"}
    surrogate = "&".join(f"{k}={v}" for k, v in fields(page, name="%ED%A0%80a").items())
    assert pen.post("/en/form", content=surrogate, headers=headers).status_code < 500
    with closing(open_contributions(tmp_path)) as db:
        assert db.execute("SELECT count(*) FROM contribution").fetchone()[0] <= 1
    assert BODY_LIMIT < 100_000


def test_no_form_is_taken_from_elsewhere(tmp_path, visit):
    pen, other = visit(), visit()
    page = pen.get("/en/form").text
    posts = ("form", "withdraw", "enter", "leave", "review")
    routes = {route.path for r in [visit().app] for route in _post_routes(r)}
    assert routes == {f"/{{lang}}/{name}" for name in posts}
    for name in posts:
        path = f"/en/{name}"
        assert pen.post(path, data=fields(page, token="")).status_code == 403
        stolen = dict(HIDDEN.findall(other.get("/en/form").text))["token"]
        assert pen.post(path, data=fields(page, token=stolen)).status_code == 403
        for site in ("cross-site", "same-site"):
            answer = pen.post(path, data=fields(page), headers={"sec-fetch-site": site})
            assert answer.status_code == 403
    assert visit().post("/en/form", data=fields(page)).status_code == 403  # no cookie
    with closing(open_contributions(tmp_path)) as db:
        assert db.execute("SELECT count(*) FROM person").fetchone()[0] == 0


def _post_routes(app):
    "The routes that take a form, those of included routers, too."
    for route in app.routes:
        inner = getattr(route, "original_router", None) or getattr(route, "router", None)
        if inner is not None:
            yield from _post_routes(inner)
        elif "POST" in (getattr(route, "methods", None) or ()):
            yield route


def test_headers_and_cookie(visit):
    pen = visit()
    for path in ("/en/", "/en/form", "/static/hints.js", "/nowhere", "/en/review"):
        headers = pen.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
    cookie = visit().get("/en/").headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie
    assert "secure" not in cookie
    pages = [
        pen.get(f"/{lang}/{name}").text for lang in WORDS for name in ("form", "words")
    ]
    assert all("CC BY-SA" in page for page in pages[::2])
    for page in pages:
        assert not re.search(r"\son\w+=|style=|<script>|https?://", page)


def test_a_flood_is_stopped(visit):
    pen = visit()
    page = pen.get("/en/form").text
    states = [pen.post("/en/form", data=fields(page)).status_code for _ in range(26)]
    assert states == [200] * 25 + [429]  # the same form 25 times: it is one
    answers = [pen.get("/en/hints?name=a") for _ in range(21)]
    assert [a.status_code for a in answers] == [200] * 20 + [429]
    assert answers[-1].headers["retry-after"] == "3600"
    assert pen.get("/en/mine").text.count("<article>") == 1


def test_people_come_back_with_their_code(visit):
    pen, later = visit(), visit()
    pen.post("/fr/form", data=fields(pen.get("/fr/form").text))
    code = pen.cookies["code"]
    assert code in pen.get("/fr/mine").text
    token = fields(later.get("/fr/enter").text)
    wrong = later.post("/fr/enter", data=token | {"code": new_code()})
    assert wrong.status_code == 404 and "n’existe pas" in wrong.text
    mine = later.post("/fr/enter", data=token | {"code": f" {code.upper()} "})
    assert "Atole" in mine.text
    id = re.search(r'name="id" value="(\w{16})"', mine.text)[1]
    assert visit().post("/fr/withdraw", data={"id": id}).status_code == 403
    gone = later.post("/fr/withdraw", data=fields(mine.text) | {"id": id})
    assert "Atole" not in gone.text and WORDS["fr"]["withdrawn"] in gone.text
    token = fields(pen.get("/fr/enter").text)
    pen.post("/fr/leave", data=token)
    assert pen.cookies["code"] != code


def test_what_is_known_is_said_without_the_script(tmp_path, visit):
    with closing(open_contributions(tmp_path)) as db:
        ada, ben = invite(db)
        id = contribute(db, new_code(), ATOLE, form="1")
        for code in (ada, ben):
            review(db, code, id, "accept")
    pen = visit()
    hints = pen.get("/ja/hints", params={"name": "ATO"}).json()
    assert hints == [{"label": "Atole", "where": "メキシコ"}]
    page = pen.get("/en/form").text
    again = pen.post("/en/form", data=fields(page, name="atole"))
    assert "Already known:" in again.text and 'name="sure"' in again.text
    assert 'value="atole"' in again.text  # nothing has to be typed again
    other = pen.post("/en/form", data=fields(page, name="atole", country="GT"))
    assert WORDS["en"]["thanks"] in other.text
    sure = fields(pen.get("/en/form").text, name="atole", sure="yes")
    assert WORDS["en"]["thanks"] in pen.post("/en/form", data=sure).text


def test_the_command_serves(tmp_path, monkeypatch, capsys):
    pytest.importorskip("uvicorn", reason="pip install 'cmining[community]'")
    import uvicorn

    calls = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: calls.append(options))
    assert not main(["collect", "serve", str(tmp_path / "people"), "--port", "8123"])
    assert "http://127.0.0.1:8123/" in capsys.readouterr().out
    assert calls[0]["access_log"] is False
    missing = ["collect", "serve", str(tmp_path / "people"), "--known", str(tmp_path)]
    assert main(missing) == 2
    assert "No records at" in capsys.readouterr().err


# ---- a real server


class Server:
    "The application, in a process of its own."

    def __init__(self, folder):
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        code = (
            "import sys; from cmining.collect.community import serve_contributions as serve;"
            " serve(sys.argv[1], port=int(sys.argv[2]))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.folder), str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        end = time.monotonic() + 240
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.stderr.read().decode()
            try:
                return requests.get(f"{self.address}/en/", timeout=5)
            except requests.ConnectionError:
                time.sleep(0.05)
        self.kill()
        raise AssertionError("the server does not answer")

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("uvicorn", reason="pip install 'cmining[community]'")
    server = Server(tmp_path / "people")
    yield server
    server.kill()


def visitor(n: int) -> requests.Session:
    "Somebody with an address of their own, behind the proxy."
    session = requests.Session()
    session.headers["X-Forwarded-For"] = f"203.0.113.{n % 250}"
    return session


def test_two_hundred_contributors_at_once(server):
    "Each sends a contribution, while four reviewers review; no address is kept."
    with closing(open_contributions(server.folder)) as db:
        codes = invite(db, 4)
    waits = []
    begun = time.monotonic()

    def send(n):
        with visitor(n) as session:
            page = session.get(f"{server.address}/en/form", timeout=240)
            given = fields(page.text, name=f"Dish {n}")
            start = time.monotonic()
            answer = session.post(f"{server.address}/en/form", given, timeout=240)
            waits.append(time.monotonic() - start)
            assert answer.status_code == 200 and f"Dish {n}" in answer.text

    stop = threading.Event()

    def judge(n, code):
        with visitor(n) as session:
            session.cookies.set("code", code)
            while True:
                last = stop.is_set()
                page = session.get(f"{server.address}/en/review", timeout=240).text
                id = re.search(r'name="id" value="(\w{16})"', page)
                if id:
                    given = fields(page, id=id[1], verdict="accept")
                    answer = session.post(
                        f"{server.address}/en/review", given, timeout=240
                    )
                    assert answer.status_code in (200, 404)  # 404: two were faster
                elif last:
                    return
                else:
                    time.sleep(0.2)

    with ThreadPoolExecutor(24) as pool:
        judges = [pool.submit(judge, 200 + i, code) for i, code in enumerate(codes)]
        sent = [pool.submit(send, n) for n in range(200)]
        for future in sent:
            future.result()
        stop.set()
        for future in judges:
            future.result()
    seconds = time.monotonic() - begun
    waits.sort()
    print(
        f"200 in {seconds:.1f} s; sending: median {waits[100]:.3f} s, most {waits[-1]:.3f} s"
    )
    with closing(open_contributions(server.folder)) as db:
        states = Counter(row[0] for row in db.execute("SELECT status FROM contribution"))
        assert states == {"accepted": 200}
        assert db.execute("SELECT count(*) FROM person").fetchone()[0] == 204
        assert check_audit(db) == []
    stored = b"".join(path.read_bytes() for path in server.folder.iterdir())
    assert b"203.0.113" not in stored


def test_a_kill_loses_nothing_that_was_answered(server):
    "Killed in the middle of writes, three times; people send again what got no answer."
    with closing(open_contributions(server.folder)) as db:
        codes = invite(db, 2)
    answered, decided, stop = set(), set(), threading.Event()

    def post(session, path, given):
        "Send it until there is an answer."
        while True:
            try:
                return session.post(f"{server.address}/en/{path}", given, timeout=60)
            except requests.RequestException:
                time.sleep(0.05)

    def get(session, path):
        while True:
            try:
                return session.get(f"{server.address}/en/{path}", timeout=60)
            except requests.RequestException:
                time.sleep(0.05)

    def send(n):
        with visitor(n) as session:
            i = 0
            while not stop.is_set():
                page = get(session, "form").text
                name = f"Dish {n} {i}"
                if post(session, "form", fields(page, name=name)).ok:
                    answered.add(name)
                i += 1

    def judge(code):
        with visitor(249) as session:
            session.cookies.set("code", code)
            while not stop.is_set():
                page = get(session, "review").text
                id = re.search(r'name="id" value="(\w{16})"', page)
                if id:
                    given = fields(page, id=id[1], verdict="accept")
                    if post(session, "review", given).status_code == 200:
                        decided.add((code, id[1]))

    with ThreadPoolExecutor(10) as pool:
        acts = [pool.submit(send, n) for n in range(8)]
        acts += [pool.submit(judge, code) for code in codes]
        for _ in range(3):
            n, m = len(answered), len(decided)
            while len(answered) < n + 12 or len(decided) < m + 2:
                time.sleep(0.01)
            server.kill()
            server.start()
        stop.set()
        for future in acts:
            future.result()
    assert len(answered) > 36 and len(decided) > 5
    with closing(open_contributions(server.folder)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM contribution")]
        assert len(names) == len(set(names)) and answered <= set(names)
        votes = Counter(row[0] for row in db.execute("SELECT contribution FROM review"))
        accepted = {
            row[0]
            for row in db.execute("SELECT id FROM contribution WHERE status = 'accepted'")
        }
        assert accepted == {id for id, n in votes.items() if n == 2}
        assert {id for _, id in decided} <= set(votes)
        assert check_audit(db) == []
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


WRITER = """
import sys
from contextlib import closing
from urllib.parse import quote
from cmining.collect.community import *
folder, ada, ben, n = sys.argv[1:]
atole = Contribution("Atole", "es", ("MX",), "cuisine", "Bebida.", "CC0-1.0")
with closing(open_contributions(folder)) as db:
    for i in range(10**6):
        code = new_code()
        id = contribute(db, code, atole, form=f"{n}-{i}")
        review(db, ada, id, "accept")
        review(db, ben, id, "accept")
        print("accepted", id, flush=True)
        if i % 3 == 0:
            withdraw(db, code, id)
            print("withdrawn", id, flush=True)
"""


def test_a_killed_writer_leaves_nothing_half_done(tmp_path, db):
    ada, ben = invite(db)
    said: dict[str, str] = {}
    for n in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), ada, ben, str(n)],
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = [process.stdout.readline() for _ in range(20 + 7 * n)]
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.wait()
        said |= {line.split()[1]: line.split()[0] for line in lines if line.count(" ")}
        states = dict(tuple(r) for r in db.execute("SELECT id, status FROM contribution"))
        assert all(states[id] in (state, "withdrawn") for id, state in said.items())
        assert check_audit(db) == []
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_in_a_browser(server, tmp_path):
    "Somebody writes, two people review, all by mouse and keyboard; and it is taken back."
    need_browser()
    with closing(open_contributions(server.folder)) as db:
        codes = invite(db, 2)
        id = contribute(db, new_code(), ATOLE._replace(name=f"Tam{EVIL[:80]}"), form="1")
        for code in codes:
            review(db, code, id, "accept")

    def enter(page, code):
        page.open(f"{server.address}/en/enter", "!!document.querySelector('#code')")
        page.js(f"document.querySelector('input#code').value = {json.dumps(code)}")
        page.js("window.left = true")
        page.js("document.querySelector('form').requestSubmit()")
        page.arrive("location.pathname == '/en/mine'")

    def submit(page, selector, ready):
        page.js("window.left = true")
        page.js(f"document.querySelector({json.dumps(selector)}).click()")
        page.arrive(ready)

    page = Page(tmp_path / "profile")
    try:
        page.open(f"{server.address}/de/form", "!!document.querySelector('#name')")
        page.js("document.querySelector('#name').focus()")
        page("Input.insertText", text="Tam")
        page.until(lambda: page.js("document.querySelector('#known li') !== null"))
        assert "Tam</textarea>" in page.js("document.querySelector('#known').textContent")
        assert page.js("document.querySelector('#known script, #known img') === null")
        page("Input.insertText", text="ales <b>rojos</b>")
        for name, value in fields("", licence="", consent="", name="").items():
            if value:
                page.js(
                    f"document.querySelector('[id={name}]').value = {json.dumps(value)}"
                )
        page.js("document.querySelector('[value=\"CC0-1.0\"]').click()")
        page.js("document.querySelector('[name=consent]').click()")
        submit(page, "main button", "location.pathname == '/de/mine'")
        assert "Tamales <b>rojos</b>" in page.js("document.body.textContent")
        mine = page.js("document.querySelector('code').textContent")
        for code in codes:
            enter(page, code)
            page.open(f"{server.address}/en/review", "!!document.querySelector('h2')")
            assert (
                page.js("document.querySelector('h2').textContent")
                == "Tamales <b>rojos</b>"
            )
            submit(page, "[value=accept]", "!document.querySelector('h2')")
        enter(page, mine)
        assert page.js("document.querySelector('.state').textContent") == "accepted"
        submit(page, "article button", "!!document.querySelector('.state')")
        assert page.js("document.querySelector('.state').textContent") == "withdrawn"
        assert page.js("document.title") != "owned"
        assert page.exceptions() == []
        assert all(a.startswith((server.address, "data:")) for a in page.requests())
    finally:
        page.close()
