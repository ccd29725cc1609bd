"""Asking a model for artifacts: faults, ten kills, money, hostile replies, linking, the command."""

import inspect
import json
import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path

import fault_server
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cmining.cli import main
from cmining.collect.elicit import (
    Cell,
    Elicitation,
    ModelSource,
    clean_name,
    elicit_claims,
    naming_text,
    read_claims,
)
from cmining.collect.records import (
    Record,
    Request,
    collect_records,
    read_records,
    write_records,
)
from cmining.core.basics import RunError, hash64
from cmining.models.prompts import Endpoint

pytest.importorskip("openai")

REQUEST = Request(("BR", "JP", "NG"), ("cuisine", "dance"), ("en", "ja"))
HOW = Elicitation(n=6, draws=3, max_tokens=400)
CELLS = 3 * 2 * 2
PRICES = {"m": {"in": 1.0, "out": 4.0}}
needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)


def model_answer(body: dict) -> str:
    "A model that names made-up things by heart; the fault server runs this function's text."
    text = body["messages"][-1]["content"]
    quoted = [line for line in text.splitlines() if line.startswith("[")]
    if "verdicts" in json.dumps(body.get("response_format", {})):
        names = json.loads(quoted[0]) if quoted else ["probe"]
        yes = {"exists": True, "of_kind": True}
        said = [
            {"name": name, "of_country": not name.startswith("Foreign"), **yes}
            for name in names
        ]
        return json.dumps({"verdicts": said}, ensure_ascii=False)
    rng = random.Random(f"{body.get('seed')} {text}")
    letters = "あいうえおかきくけこ" if "Japanese" in text else "abcdefghik"
    names = ["".join(rng.sample(letters, 4)) for _ in range(5)] + ["Foreign dish"]
    said = [{"name": name, "description": f"about {name}"} for name in names]
    return json.dumps({"artifacts": said}, ensure_ascii=False)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    "Short waits, and no key and no proxy of whoever runs the tests."
    monkeypatch.setattr("cmining.models.budget.FIRST_WAIT", 0.02)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def elicit(base_url: str, out: Path, request=REQUEST, how=HOW, **more) -> dict:
    endpoint = Endpoint("m", base_url, concurrency=4, timeout=2)
    source = ModelSource(endpoint, out / "asked", how, **more)
    return collect_records(source, request, out)


def files_of(out: Path) -> list[bytes]:
    names = ("records.parquet", "run.json", "asked/claims.jsonl")
    return [(out / name).read_bytes() for name in names]


@pytest.fixture
def server(tmp_path):
    "A function that starts a fault server which answers like the model."
    file = tmp_path / "answers.py"
    file.write_text(f"import json, random\n\n{inspect.getsource(model_answer)}", "utf-8")

    def start(**options):
        return fault_server.running(answer=f"{file}:model_answer", hang=1, **options)

    return start


@needs_fork
def test_killed_ten_times_it_ends_the_same_and_pays_once(server, tmp_path):
    kills = 10
    # one list a cell: the server tells prompts apart by their texts, not by their seeds
    how = HOW._replace(draws=1)
    request = REQUEST._replace(langs=("de", "en", "ja"))
    n_requests = 3 * 2 * 3 * 4
    with server() as quiet:
        base_url = quiet.base_url
        elicit(base_url, tmp_path / "a", request, how)
    port = int(base_url.split(":")[2].split("/")[0])
    journal = tmp_path / "b/asked/replies.jsonl"
    rng = random.Random(0)
    with server(latency=0.08, faults=0.1, seed=5, kinds="429,500,cut") as faulty:

        def run() -> None:
            elicit(faulty.base_url, tmp_path / "b", request, how)

        for _ in range(kills):
            have = journal.stat().st_size if journal.exists() else 0
            process = multiprocessing.get_context("fork").Process(target=run)
            process.start()
            while process.is_alive() and (
                not journal.exists() or journal.stat().st_size <= have
            ):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.1))
            assert process.is_alive(), "it was over before it was killed"
            process.kill()
            process.join()
        elicit(faulty.base_url, tmp_path / "b", request, how)
        stats = faulty.stats()
    a, b = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert a[0] == b[0] and a[2] == b[2]
    about = [
        text.decode().replace(f":{p}", "")
        for text, p in ((a[1], port), (b[1], faulty.port))
    ]
    assert about[0] == about[1]
    answers = fault_server.final_answers(journal)
    probes = [key for key in answers.elements() if key.startswith("probe")]
    answers = Counter({k: n for k, n in answers.items() if not k.startswith("probe")})
    assert len(answers) == n_requests and set(answers.values()) == {1}
    # probes alone: of two schemas in the same words, and anew after a kill
    assert stats["again_taken"] <= len(probes) <= 2
    assert stats["again_sent"] <= 4 * kills  # on their way when the process died


def test_claims_say_who_and_how_often(server, tmp_path):
    graph = [
        Record("Q-less", "Q7", ("JP",), "dance", {"ja": "placeholder"}, evidence=("toy",))
    ]
    with server() as one:
        elicit(one.base_url, tmp_path / "a")
        first = next(r for r in read_records(tmp_path / "a") if r.countries == ("JP",))
        graph[0] = graph[0]._replace(labels={"ja": first.artifact.upper()})
        before = one.stats()["requests"]
        record = elicit(one.base_url, tmp_path / "a", graph=graph)
        assert one.stats()["requests"] == before  # all is in the journal
    records = list(read_records(tmp_path / "a"))
    claims = read_claims(tmp_path / "a/asked/claims.jsonl")
    linked = [r for r in records if r.qid]
    assert [r.qid for r in linked] == ["Q7"]
    assert "name and country are those of Q7" in linked[0].evidence
    assert record["left_out"]["in no graph"] > 10
    assert record["left_out"]["rejected by the model itself: of_country no"] == CELLS
    foreign = [c for c in claims if c.name == "Foreign dish"]
    assert len(foreign) == CELLS
    assert {(c.listed, c.lists, c.completed) for c in foreign} == {(3, 3, True)}
    assert not any(r.artifact == "Foreign dish" for r in records)
    assert all(r.source == "model" and r.review == "open" for r in records)
    assert all(e.startswith(("m: ", "name and")) for r in records for e in r.evidence)
    assert len({r.id for r in records}) == len(records)


def test_a_budget_stops_and_the_same_call_goes_on(server, tmp_path):
    with server() as one:
        with pytest.raises(RunError, match="have no answer .* the same command"):
            elicit(one.base_url, tmp_path / "a", prices=PRICES, budget=0.02)
        assert not (tmp_path / "a/records.parquet").exists()
        elicit(one.base_url, tmp_path / "a", prices=PRICES, budget=5.0)
        elicit(one.base_url, tmp_path / "b")
        assert files_of(tmp_path / "a")[0] == files_of(tmp_path / "b")[0]


@pytest.mark.parametrize("kinds", ["refusal", "truncated", "prose"])
def test_answers_that_are_none(kinds, server, tmp_path):
    with server(faults=0.4, seed=2, kinds=kinds) as one:
        record = elicit(one.base_url, tmp_path / "a")
    unread = record["left_out"].get("list that cannot be read", 0)
    assert (unread == 0) == (kinds == "prose")
    assert record["records"] > 20
    claims = read_claims(tmp_path / "a/asked/claims.jsonl")
    assert (min(c.lists for c in claims) < 3) == (kinds != "prose")


anything = st.text(max_size=130)


@given(st.lists(anything, max_size=8), st.lists(anything, max_size=4))
@example([], [".0.0"])
def test_any_names_are_taken_as_text(names, others):
    "Whatever a model writes: every prompt and record can be made of it."

    def answer(prompts):
        replies = {}
        for prompt in prompts:
            assert prompt.key.isprintable()
            if prompt.key.startswith("criticise"):
                yes = {"exists": True, "of_country": True, "of_kind": True}
                said = [{"name": name, **yes} for name in [*others, *names]]
                replies[prompt.key] = {"verdicts": said}
            else:
                which = names if prompt.key.startswith("list") else others
                said = [{"name": name, "description": name} for name in which]
                replies[prompt.key] = {"artifacts": said}
        return replies

    claims = elicit_claims([Cell("BR", "dance", "en")], answer, Elicitation(draws=2))
    folded = [hash64(clean_name(claim.name)) for claim in claims]
    assert len(folded) == len(set(folded))
    for claim in claims:
        assert claim.name == clean_name(claim.name) and 0 < len(claim.name) <= 100
        assert claim.listed in (0, 2) and (claim.listed or claim.completed)


def test_wording():
    text = naming_text("plain", 1, "JP", "festivals", "yo", 4)
    assert text.startswith("Which festivals come from this country: Japan? Name 4.")
    assert text.endswith("in this language: Yoruba.")
    with pytest.raises(RunError, match="'xx1' is no language"):
        naming_text("plain", 0, "JP", "dance", "xx1", 4)


def test_the_command(server, tmp_path, capsys):
    graph = tmp_path / "graph"
    known = Record(
        "sushi", "Q46383", ("JP",), "cuisine", {"en": "sushi"}, evidence=("x",)
    )
    write_records(graph, [known], {"source": "graph"}, Counter())
    with server() as one:
        words = ["collect", "elicit", "m", "--base-url", one.base_url, "--draws", "2"]
        words += ["--countries", "Japan,BR", "--aspects", "cuisine", "--langs", "en"]
        words += ["--graph", str(graph)]
        assert main([*words, "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert "artifacts that m claims" in told and "in no graph" in told
    about = json.loads((tmp_path / "a/run.json").read_text())
    assert about["source"] == "model" and about["request"]["countries"] == ["JP", "BR"]
    words = ["collect", "elicit", "m", "--countries", "Atlantis", "--aspects", "x"]
    assert main([*words, "--out", str(tmp_path / "b")]) == 2
    assert "no country is called 'Atlantis'" in capsys.readouterr().err
