"""Representation: properties of the formulas, planted models, a server, a tiny model of our own."""

import inspect
import json
from collections import Counter
from pathlib import Path

import fault_server
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmining.cli import main
from cmining.collect.merge import merge_records, read_merged
from cmining.collect.records import Record, write_records
from cmining.collect.represent import (
    NameIndex,
    Protocol,
    Question,
    Respondent,
    artifact_weights,
    is_validated,
    list_questions,
    read_answer,
    read_validated,
    results_table,
    run_represent,
    vendi_score,
    weighted_recall,
)
from cmining.collect.salience import popularity_tail
from cmining.core.basics import CorpusError, RunError
from cmining.evidence.study import simulate_study

PROTOCOL = Protocol(("BR", "JP", "NG"), ("cuisine", "dance"), ("en", "ja"), n=5)
SYLLABLES = ("ka", "lo", "mi", "ta", "ne", "su")


def name_of(country: str, aspect: str, i: int) -> str:
    return f"{country.lower()}{aspect[:2]}{SYLLABLES[i % 6]}{SYLLABLES[i // 6]}"


def planted() -> list[Record]:
    "Twelve artifacts a country and aspect, the first the most popular."
    return [
        Record(
            name_of(country, aspect, i),
            countries=(country,),
            aspect=aspect,
            labels={"en": name_of(country, aspect, i)},
            evidence=("planted",),
            popularity=float(2 ** (12 - i)),
        )
        for country in PROTOCOL.countries
        for aspect in PROTOCOL.aspects
        for i in range(12)
    ]


INDEX = NameIndex(merge_records(planted()))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("artifacts")
    write_records(out, planted(), {"source": "graph"}, Counter())
    return out


def respondent(say) -> Respondent:
    "A model that is a function of the question."

    def answer(prompts, work):
        texts = []
        for prompt in prompts:
            framing, country, aspect, lang, wording, draw, _ = prompt.key.split("/")
            question = Question(framing, country, aspect, lang, int(wording), int(draw))
            texts.append("\n".join(say(question)))
        return texts

    return Respondent({"model": "planted"}, answer)


def best(question: Question) -> list[str]:
    return [name_of(question.country or "JP", question.aspect, i) for i in range(5)]


def test_a_model_that_knows_everything_and_one_that_knows_nothing(artifacts, tmp_path):
    results = run_represent(tmp_path / "a", artifacts, PROTOCOL, respondent(best))
    assert results["all"]["score"] == {"value": 1.0, "lo": None, "hi": None}
    assert results["all"]["specificity"]["value"] == 1
    assert results["all"]["consensus"]["value"] == 1
    assert results["all"]["pull"]["value"] == 0  # all framings alike
    assert results["shares"]["JP"]["share"]["value"] == 1
    assert results["shares"]["JP"]["ratio"] == pytest.approx(3, abs=1e-4)
    assert results["shares"]["BR"]["ratio"] == 0
    nothing = run_represent(
        tmp_path / "b", artifacts, PROTOCOL, respondent(lambda q: ["No idea", "None"])
    )
    assert nothing["all"]["score"]["value"] == 0 and nothing["all"]["valid"]["value"] == 0
    assert nothing["all"]["specificity"]["value"] is None
    assert nothing["shares"]["JP"]["share"]["value"] is None
    assert nothing["countries"]["JP"]["coverage"] == 0
    silent = run_represent(tmp_path / "c", artifacts, PROTOCOL, respondent(lambda q: []))
    assert (
        silent["all"]["score"]["value"] == 0 and silent["all"]["valid"]["value"] is None
    )
    assert silent["left_out"]["answer without a name"] == silent["prompts"]


def test_the_more_it_knows_the_higher_its_score(artifacts, tmp_path):
    "Japan all five, Brazil three, Nigeria one and the names of another country."

    def say(question):
        n = {"JP": 5, "BR": 3, "NG": 1, "": 4}[question.country]
        names = best(question)[:n]
        if question.country == "NG":
            names += [name_of("JP", question.aspect, i) for i in range(3)]
        return names

    results = run_represent(tmp_path / "a", artifacts, PROTOCOL, respondent(say))
    scores = {c: of["score"]["value"] for c, of in results["countries"].items()}
    assert scores["JP"] == 1 > scores["BR"] > scores["NG"] > 0
    weights = artifact_weights([2.0 ** (12 - i) for i in range(12)])
    assert scores["BR"] == pytest.approx(weights[:3].sum() / weights[:5].sum(), abs=1e-6)
    assert results["countries"]["NG"]["specificity"]["value"] == 0.25
    table = results_table(results)
    assert table["country"].tolist() == ["JP", "BR", "NG"]
    assert (tmp_path / "a/countries.svg").read_text().startswith("<?xml")
    assert "http" not in (tmp_path / "a/countries.csv").read_text()
    lines = (tmp_path / "a/answers.jsonl").read_text().splitlines()
    assert len(lines) == results["prompts"] == len(list_questions(PROTOCOL))
    assert json.loads((tmp_path / "a/results.json").read_text())["all"] == results["all"]


def test_intervals_hold_the_truth(artifacts, tmp_path):
    "Answers of chance: each of the five is named with probability ½, so the score is near ½."
    protocol = PROTOCOL._replace(draws=5)
    rng = np.random.default_rng(0)

    def say(question):
        return [name for name in best(question) if rng.random() < 0.5] or ["nothing"]

    score = run_represent(tmp_path / "a", artifacts, protocol, respondent(say))["all"][
        "score"
    ]
    assert score["lo"] < 0.5 < score["hi"]
    assert 0.02 < score["hi"] - score["lo"] < 0.15


def test_pull_and_languages(artifacts, tmp_path):
    "The default is the outsiders' list; in Japanese it is another one than in English."

    def say(question):
        shift = 5 if question.lang == "ja" else 0
        if question.framing == "insider":
            shift += 2
        return [
            name_of(question.country or "JP", question.aspect, shift + i)
            for i in range(5)
        ]

    results = run_represent(tmp_path / "a", artifacts, PROTOCOL, respondent(say))
    assert results["all"]["pull"]["value"] == pytest.approx(1 - 3 / 7, abs=1e-6)
    assert results["all"]["consensus"]["value"] == 0
    assert results["all"]["consistency"]["value"] == 1


def test_runs_are_the_same_to_the_byte(artifacts, tmp_path):
    for name in ("a", "b"):
        run_represent(tmp_path / name, artifacts, PROTOCOL, respondent(best))
    for name in (
        "results.json",
        "answers.jsonl",
        "countries.csv",
        "countries.svg",
        "map.svg",
    ):
        a, b = tmp_path / "a" / name, tmp_path / "b" / name
        assert a.read_bytes() == b.read_bytes(), name


def test_who_may_count(tmp_path):
    claimed = Record("Mirage", None, ("BR",), "dance", source="model", evidence=("m",))
    mined = claimed._replace(source="mined")
    for records, expected in [
        ([claimed], False),
        ([mined], False),
        ([claimed, mined], True),
        ([claimed._replace(source="graph")], True),
        ([claimed, mined._replace(review="rejected")], False),
        ([claimed._replace(review="accepted")], True),
        ([claimed._replace(review="accepted"), mined._replace(review="rejected")], False),
    ]:
        (row,) = merge_records(records)
        assert is_validated(row) == expected, records
    write_records(tmp_path / "claims", [claimed], {}, Counter())
    with pytest.raises(CorpusError, match="no validated artifact"):
        run_represent(tmp_path / "a", tmp_path / "claims", PROTOCOL, respondent(best))
    with pytest.raises(RunError, match="at least one country"):
        list_questions(Protocol((), ("dance",)))


def test_a_file_that_is_no_list_is_refused(tmp_path):
    (tmp_path / "dishes.txt").write_text("Paella\n")
    with pytest.raises(CorpusError, match="give .json, .jsonl, .csv or .tsv"):
        read_validated(tmp_path / "dishes.txt", Counter())


unit = st.floats(0, 1, allow_nan=False)


@given(st.lists(st.lists(unit, min_size=4, max_size=4), min_size=1, max_size=7))
@settings(max_examples=60)
def test_vendi_is_between_one_and_n(rows):
    vectors = np.array(rows) + 1e-3
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    score = vendi_score(similarity)
    assert 1 - 1e-6 <= score <= len(rows) + 1e-6
    twice = np.kron(similarity, np.ones((2, 2)))  # each thing a second time
    assert vendi_score(twice) == pytest.approx(score, abs=1e-6)
    order = np.random.default_rng(0).permutation(len(rows))
    assert vendi_score(similarity[np.ix_(order, order)]) == pytest.approx(score, abs=1e-6)


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.booleans()), min_size=1, max_size=20),
    st.integers(1, 20),
)
def test_recall_is_a_share(items, n):
    weights = artifact_weights([p for p, _ in items])
    named = np.array([is_named for _, is_named in items])
    value = weighted_recall(named & (named.cumsum() <= n), weights, n)
    assert 0 <= value <= 1 + 1e-9
    top = np.argsort(-weights, kind="stable")[:n]
    assert weighted_recall(
        np.isin(np.arange(len(items)), top), weights, n
    ) == pytest.approx(1)


@given(st.text(max_size=300), st.integers(1, 9))
def test_any_answer_is_read(text, n):
    names = read_answer(text, n, INDEX)
    assert len(names) <= n
    assert all(name == name.strip() and "\n" not in name for name in names)


@given(st.lists(st.sampled_from(range(12)), min_size=1, max_size=4), st.text(max_size=20))
def test_names_are_found_in_sentences(chosen, between):
    said = [name_of("BR", "cuisine", i) for i in chosen]
    sentence = f" {between} ".join(["They say that there is", *said, "and nothing more"])
    found = INDEX.names_in(sentence)
    assert [name for name in found if name in said] == said


def test_free_text_counts_as_a_list_does(artifacts, tmp_path):
    def talk(question):
        names = best(question)
        return [f"If you ask me, {name} is what everybody there knows." for name in names]

    lists = run_represent(tmp_path / "a", artifacts, PROTOCOL, respondent(best))
    sentences = run_represent(tmp_path / "b", artifacts, PROTOCOL, respondent(talk))
    assert sentences["all"]["score"] == lists["all"]["score"]


def served_answer(body: dict) -> str:
    "What the server says: two of Brazil's dishes, one of them with a number and a remark."
    text = body["messages"][-1]["content"]
    return (
        "1. brcukaka - a dish\n2. brculoka\n3. ramen" if "Brazil" in text else "ngcukaka"
    )


def test_the_command_with_a_server(artifacts, tmp_path, capsys, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    file = tmp_path / "answers.py"
    file.write_text(inspect.getsource(served_answer), "utf-8")
    words = ["collect", "represent", "m", "--artifacts", str(artifacts), "--n", "3"]
    words += ["--countries", "Brazil,NG", "--aspects", "cuisine"]
    words += ["--out", str(tmp_path / "a")]
    with fault_server.running(answer=f"{file}:served_answer") as server:
        assert main([*words, "--base-url", server.base_url]) == 0
        first = (tmp_path / "a/results.json").read_bytes()
        before = server.stats()["requests"]
        assert main([*words, "--base-url", server.base_url]) == 0
        assert server.stats()["requests"] == before  # all is in the journal
    assert (tmp_path / "a/results.json").read_bytes() == first
    told = capsys.readouterr().out
    assert "Brazil" in told and "bootstrap over prompts" in told
    results = json.loads(first)
    weights = artifact_weights([2.0**12, 2.0**11, 2.0**10])
    expected = round(weights[:2].sum() / weights.sum(), 6)
    assert results["countries"]["BR"]["score"]["value"] == expected
    assert results["countries"]["BR"]["valid"]["value"] == round(2 / 3, 6)
    assert main([*words, "--budget", "1"]) == 2
    assert "--budget is for an endpoint" in capsys.readouterr().err


def test_a_model_of_our_own(tiny_llama, artifacts, tmp_path):
    "It says nothing sensible, but says the same again, and goes on where it was stopped."
    words = ["collect", "represent", str(tiny_llama), "--artifacts", str(artifacts)]
    words += ["--countries", "BR", "--aspects", "cuisine", "--max-tokens", "12"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    a, b = ((tmp_path / n / "results.json").read_bytes() for n in ("a", "b"))
    assert a == b
    assert json.loads(a)["model"]["backend"] == "transformers"
    (journal,) = (tmp_path / "a/work").glob("answers-*.jsonl")
    torn = journal.read_bytes()[:-20]
    journal.write_bytes(torn)
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a/results.json").read_bytes() == a


def test_the_tail_goes_to_people_and_comes_back(artifacts, tmp_path, capsys):
    "A study of the least popular, answered by simulated raters, changes the merged table."
    study = tmp_path / "study"
    merged = tmp_path / "merged"
    assert main(["collect", "merge", str(artifacts), "--out", str(merged)]) == 0
    words = ["collect", "tail", str(merged), "--out", str(study), "--raters", "2"]
    assert main([*words, "--popular", "3"]) == 0
    assert "27 items" in capsys.readouterr().out
    rows = read_merged(merged)
    tail = popularity_tail(rows)
    assert len(tail) == 6 * 4  # the last 4 of 12 in six countries and aspects
    assert all(rows[i].popularity <= 2**4 for i in tail)
    truth = pd.DataFrame({"id": [row.id for row in rows]})
    good = np.arange(len(rows)) % 2
    truth = truth.assign(q1=good, q2=good, q3=good, q4=good, q5=0)
    simulate_study(study, truth, ({"accuracy": 1.0},))
    assert main(["annotate", "collect", str(study)]) == 0
    assert main(["annotate", "score", str(study)]) == 0
    decisions = tmp_path / "decisions"
    words = ["collect", "reviews", str(study), "--artifacts", str(merged)]
    assert main([*words, "--out", str(decisions)]) == 0
    again = tmp_path / "again"
    words = ["collect", "merge", str(artifacts), str(decisions), "--out", str(again)]
    assert main(words) == 0
    reviews = {row.artifact: row.review for row in read_merged(again)}
    for i, row in enumerate(rows):
        judged = "accepted" if i % 2 else "rejected"
        assert reviews[row.artifact] == judged if i in tail else True
    assert sum(review != "open" for review in reviews.values()) == 24 + 3
    assert main([*words[:3], str(tmp_path / "nowhere"), "--out", str(again)]) == 2


def test_all_paths_in_one_command(artifacts, tmp_path, capsys):
    "Steps that are done are not done again, and a file that is wrong says where."
    graph = Path(__file__).parent.parent / "data/graph/toy.json"
    claim = Record("Sushi", None, ("JP",), "cuisine", source="model", evidence=("m",))
    write_records(tmp_path / "claims", [claim], {"source": "model"}, Counter())
    config = tmp_path / "all.toml"
    lines = [f"[graph]\nsource = {str(graph)!r}", "[model]\nrecords = 'claims'"]
    config.write_text("\n".join([*lines, "[people]\nraters = 1"]), "utf-8")
    words = ["collect", "all", "--config", str(config), "--jobs", "1"]
    words += ["--out", str(tmp_path / "a")]
    assert main(words) == 0
    assert "there already" not in capsys.readouterr().out
    table = (tmp_path / "a/merged/merged.parquet").read_bytes()
    assert main(words) == 0
    assert "graph: there already" in capsys.readouterr().out
    assert (tmp_path / "a/merged/merged.parquet").read_bytes() == table
    rows = {row.artifact: row for row in read_merged(tmp_path / "a/merged")}
    assert set(rows["Sushi"].sources) == {"graph", "model"}
    assert (tmp_path / "a/study/study.json").is_file()
    config.write_text("langs = ['ja', 'en']\n" + "\n".join(lines), "utf-8")
    assert main(words) == 0
    assert "there already" not in capsys.readouterr().out
    config.write_text("[graph]\nroots = 3", "utf-8")
    assert main(words) == 2
    assert "has 'roots'; it can have source" in capsys.readouterr().err


def test_a_file_that_is_no_list_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("Feijoada")
    words = ["collect", "represent", "m", "--base-url", "http://127.0.0.1:9/v1"]
    words += ["--artifacts", str(tmp_path / "list.txt"), "--countries", "BR"]
    assert main([*words, "--aspects", "cuisine", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "list.txt" in said and "Traceback" not in said
