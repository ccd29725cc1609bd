"""Kinds of things: the lists, the patterns on any text, the weights, the labels, and who uses them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from cmining.core.basics import RunError
from cmining.core.runs import TABLES
from cmining.instruct.synthesize import Settings, read_points
from cmining.mine.kinds import (
    KINDS,
    SIMPLIFY,
    KindModel,
    find_definition,
    kinds_of,
    load_kind_model,
    noun_kinds,
    pattern_kind,
    save_kind_model,
)
from cmining.models.encoders import load_encoder
from cmining.viz.report import kinds_section

ROOT = Path(__file__).parent.parent
WIKI = ROOT.parent / "shared/data/wiki"
LANGS = ("de", "en", "es", "fr", "ja", "zh")
LABELS = pd.read_csv(ROOT / "data/kinds.tsv", sep="\t")


@pytest.mark.parametrize("lang", LANGS)
def test_lists_hold_head_nouns_of_every_kind(lang):
    nouns = noun_kinds(lang)
    assert set(nouns.values()) == set(KINDS)
    assert len(nouns) > 600
    assert all(noun == noun.lower() for noun in nouns)
    if lang == "zh":  # text is simplified before it is looked up
        assert all(noun == noun.translate(SIMPLIFY) for noun in nouns)


@pytest.mark.parametrize(
    ("lang", "title", "lead", "kind"),
    [
        ("en", "Ann Example", "ANN EXAMPLE (born 3 May 1950) is a painter.", "person"),
        ("en", "Sampleton", "Sampleton is a village in the north.", "place"),
        ("en", "Fjord", "A fjord is a narrow valley filled by the sea.", "concept"),
        ("en", "Sample v. Test", "Sample v. Test was a Supreme Court case.", "event"),
        ("en", "Show", "SHOW was a variety show featuring country music.", "work"),
        (
            "en",
            "Exempli",
            "Exempli is a genus of plants in the family Exemplaceae.",
            "taxon",
        ),
        ("en", "Economy of Samplia", "Samplia has a market economy.", "other"),
        ("de", "Muster", "Max Muster (* 1. Mai 1950 in Hier) ist Maler.", "person"),
        ("de", "Musterbach", "Der Musterbach ist ein Nebenfluss der Probe.", "place"),
        (
            "de",
            "SV Muster",
            "Der SV Muster ist ein Hockey- und Fußballverein.",
            "organisation",
        ),
        ("de", "Probe", "Als Probe bezeichnet man einen Teil.", "concept"),
        ("fr", "Modèle", "Modèle est une commune française.", "place"),
        ("fr", "Bataille de Modèle", "Elle opposa deux armées.", "event"),
        ("fr", "Jean Modèle", "Jean Modèle, né le 3 mai 1950, est peintre.", "person"),
        (
            "es",
            "Ana Muestra",
            "Ana Muestra (Aquí, 3 de mayo de 1950) es actriz.",
            "person",
        ),
        ("es", "Muestra", "Una muestra es una parte de un todo.", "concept"),
        ("ja", "見本", "『見本』（みほん）は、日本の漫画。", "work"),
        ("ja", "見本太郎", "見本 太郎（みほん、1950年5月3日 - ）は、画家。", "person"),
        ("ja", "見本市", "見本市（みほんし）は、見本県の市である。", "place"),
        ("zh", "样本", "样本是一个乡，位于样本县。", "place"),
        ("zh", "樣本鐵路", "樣本鐵路是一條鐵路。", "place"),
        ("zh", "张样本", "张样本，字子样，样本县人。", "person"),
    ],
)
def test_first_sentences(lang, title, lead, kind):
    assert pattern_kind(title, lead, lang) == kind


def test_a_letter_that_changes_its_length_is_found():
    lead = "TRAGÖß ist ein Ort in den Bergen."
    assert pattern_kind("Tragöß", lead, "de") == "place"
    assert pattern_kind("İzmit", "İzmit is a city.", "en") in ("place", "")


def test_other_languages_have_no_patterns_but_kinds():
    assert pattern_kind("Prov", "Prov är en by i Sverige.", "sv") == ""
    assert kinds_of(["Prov"], ["Prov är en by i Sverige."], ["sv"])[0] in KINDS


TEXTS = st.text(max_size=300) | st.lists(
    st.sampled_from(
        [
            "(",
            ")",
            "（",
            "）",
            "is",
            "は",
            "是",
            "est",
            "ist",
            "A ",
            "1950",
            "。",
            "- ",
            "* ",
        ]
    ),
    max_size=120,
).map("".join)


@settings(max_examples=150)
@given(TEXTS, TEXTS, st.sampled_from([*LANGS, "sv"]))
def test_any_text_has_a_kind_or_none(title, lead, lang):
    assert pattern_kind(title, lead, lang) in ("", *KINDS)
    assert 0 <= find_definition(title, lead, lang).start <= len(lead)


@pytest.mark.parametrize("lang", LANGS)
@pytest.mark.parametrize(
    "lead", ["(" * 5000, "（" * 5000, "a (" * 3000, "は、" * 3000, "is a " * 3000]
)
def test_hostile_leads_take_no_time(lang, lead):
    for _ in range(20):
        pattern_kind("(" * 200, lead, lang)


def test_an_entry_has_the_same_kind_whatever_stands_beside_it():
    sample = [
        json.loads(line) | {"lang": lang}
        for lang in LANGS
        for line in (ROOT / f"data/sample/{lang}.jsonl")
        .read_text("utf-8")
        .splitlines()[:40]
    ]
    columns = [
        (entry["title"], entry["paragraphs"][0], entry["lang"]) for entry in sample
    ]
    kinds = kinds_of(*zip(*columns))
    assert set(kinds) <= set(KINDS)
    order = np.random.default_rng(0).permutation(len(columns))
    assert list(kinds_of(*zip(*[columns[i] for i in order]))) == list(kinds[order])
    assert list(kinds_of([], [], [])) == []


def test_weights_belong_to_the_bundled_encoder(tmp_path, monkeypatch):
    model = load_kind_model()
    assert model.weights.shape == (2 * load_encoder().dim, len(KINDS))
    assert np.isfinite(model.weights).all()
    path = tmp_path / "weights.safetensors"
    save_kind_model(
        KindModel(model.weights.T.copy().T, model.bias), path
    )  # not contiguous
    again = load_kind_model.__wrapped__(path)
    assert np.array_equal(again.weights, model.weights)
    monkeypatch.setattr("cmining.mine.kinds.KINDS", KINDS[::-1])
    with pytest.raises(RunError, match="make the weights again"):
        load_kind_model.__wrapped__(path)


def test_labels():
    assert len(LABELS) == 600
    assert LABELS["split"].value_counts().to_dict() == {"dev": 300, "test": 300}
    assert LABELS["lang"].value_counts().to_dict() == dict.fromkeys(LANGS, 100)
    assert set(LABELS["kind"]) == set(KINDS)
    assert LABELS["id"].str.fullmatch("[0-9a-f]{16}").all()
    assert not LABELS.duplicated(["lang", "id"]).any()
    ids = {
        json.loads(line)["id"]
        for lang in LANGS
        for line in (ROOT / f"data/sample/{lang}.jsonl").read_text("utf-8").splitlines()
    }
    assert set(LABELS.loc[LABELS["corpus"] == "sample", "id"]) <= ids


@pytest.mark.skipif(
    not WIKI.exists(), reason="../shared/data/wiki is not beside the checkout"
)
def test_kinds_of_real_entries():
    "On the half that the patterns were developed on; the notebook tells the other."
    from cmining.ingest.corpus import entry_id

    dev = LABELS[(LABELS["split"] == "dev") & (LABELS["corpus"] == "wikipedia")]
    parts = []
    for lang in LANGS:
        table = pd.read_json(WIKI / f"{lang}.jsonl.gz", lines=True, dtype=False)
        ids = [entry_id(lang, title) for title in table["title"]]
        parts.append(table.assign(id=ids)[["lang", "id", "title", "paragraphs"]])
    rows = dev.merge(pd.concat(parts), on=["lang", "id"])
    assert len(rows) == len(dev)
    leads = rows["paragraphs"].str[0]
    said = kinds_of(list(rows["title"]), list(leads), list(rows["lang"]))
    assert f1_score(rows["kind"], said, average="macro") >= 0.85


@pytest.fixture
def toy_run(tmp_path):
    points = pd.DataFrame(
        {
            "id": ["1", "2", "3"],
            "lang": ["de", "de", "ja"],
            "title": ["<b>Richtfest</b>", "Musterdorf", "見本"],
            "lead": ["Ein Fest.", "Ein Dorf.", "画家。"],
            "kind": ["concept", "place", "person"],
            "group": [0, 0, 1],
            "rank": [1, 2, 1],
        }
    )
    columns = list(TABLES["culture_points"])
    points.reindex(columns=columns).to_parquet(tmp_path / "culture_points.parquet")
    return tmp_path


def test_synthesis_takes_the_kinds_that_are_asked_for(toy_run):
    assert len(read_points(toy_run)) == 3
    assert list(read_points(toy_run, ("concept", "work"))["title"]) == [
        "<b>Richtfest</b>"
    ]
    with pytest.raises(RunError, match="of kind taxon; there are 1 concept"):
        read_points(toy_run, ("taxon",))
    with pytest.raises(RunError, match="kinds are concept, .* not concepts"):
        Settings(kinds=("concepts",))


def test_runs_without_kinds_say_so(toy_run):
    path = toy_run / "culture_points.parquet"
    pd.read_parquet(path).drop(columns="kind").to_parquet(path)
    assert len(read_points(toy_run)) == 3
    with pytest.raises(RunError, match="says no kinds: mine the corpus again"):
        read_points(toy_run, ("concept",))
    assert kinds_section({"run": toy_run}) == []


def test_report_tells_kinds(toy_run):
    section = "\n".join(kinds_section({"run": toy_run}))
    assert "&lt;b&gt;Richtfest" in section
    assert "<b>Richtfest" not in section
    assert "concept" in section and "all" in section
