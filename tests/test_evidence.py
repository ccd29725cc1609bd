"""Explanations hold for every entry of an awkward run; sweeps, quality and the control keep their word."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cmining.core.runs import Params, read_record, read_run
from cmining.evidence.explain import (
    explain_entry,
    explain_group,
    explain_html,
    explain_text,
    funnel,
    neighbors,
)
from cmining.evidence.quality import POINTS, evaluate_run
from cmining.evidence.sweep import run_sweep
from cmining.ingest import sort
from cmining.mine.control import encoder_control
from cmining.mine.pipeline import load_vectors, mine_corpus
from cmining.models.encoders import load_encoder

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
SCRIPT = "<script>alert('1')</script>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two languages of the sample, one with a hostile title, and a third.

    The third language has a single entry."""
    folder = tmp_path_factory.mktemp("corpus")
    for lang in ("es", "ja"):
        shutil.copy(SAMPLE / f"{lang}.jsonl", folder)
    tamal = next(
        row
        for row in map(json.loads, (SAMPLE / "es.jsonl").open(encoding="utf-8"))
        if row["title"] == "Tamal"
    )
    with (folder / "es.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps({**tamal, "id": "hostile", "title": SCRIPT}) + "\n")
    (folder / "fr.jsonl").write_text(
        json.dumps({"title": "Seul", "paragraphs": ["Un texte.", "Et un autre."]}) + "\n",
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module", params=["kmeans", "hdbscan"])
def run(request, corpus, tmp_path_factory):
    "A run in several small shards."
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sort, "SHARD_ENTRIES", 64)
        mine_corpus(
            corpus, folder, Params.of(clusterer=request.param, n_repeats=3), jobs=1
        )
    return folder


def test_every_entry_can_be_explained(run):
    for entry in read_run(run, "entries")[::2].itertuples():
        record = explain_entry(run, entry.id, entry.lang)
        json.dumps(record, allow_nan=False)
        passed = all(test["passed"] for test in record["tests"])
        assert passed == (entry.stage == "culture_point")
        assert record["changes"]
        assert "nan" not in explain_text(record).split()
        assert "<script" not in explain_html(record)


def test_every_group_can_be_explained(run):
    entries = read_run(run, "entries")
    for group in read_run(run, "groups").itertuples():
        record = explain_group(run, group.group, k=1000)
        json.dumps(record, allow_nan=False)
        members = entries.loc[entries["group"] == group.group, "title"]
        assert sorted(term["title"] for term in record["terms"]) == sorted(members)


def test_neighbors_equal_the_naive_ones(run):
    entries = read_run(run, "entries")
    shards = read_record(run)["vectors"]
    assert len(shards["es"]) > 2
    kept = entries[entries["stage"] != "pruned"]
    rows = {lang: kept.index[kept["lang"] == lang] for lang in shards}
    vectors = {
        lang: load_vectors([run / "work" / s for s in shards[lang]]).astype(np.float32)
        for lang in shards
    }
    for row in kept.index[::37]:
        lang = entries["lang"][row]
        query = vectors[lang][list(rows[lang]).index(row)]
        nearest = neighbors(run, entries, row)
        for other in shards:
            by_distance = sorted(zip(-(vectors[other] @ query), rows[other]))
            naive = [entries["title"][r] for _, r in by_distance if r != row][:3]
            assert [entry["title"] for entry in nearest[other]] == naive


def test_the_funnel_loses_nothing(run):
    table = funnel(run)
    entries = read_run(run, "entries")
    for lang, steps in table.groupby("lang"):
        size = len(entries) if lang == "all" else (entries["lang"] == lang).sum()
        assert steps["entered"].iloc[0] == size
        assert steps["stopped"].sum() + steps["remain"].iloc[-1] == size


def test_sweep_is_mining_again_and_can_be_repeated(corpus, tmp_path):
    grid = {"theta": [0.6, 1.0], "n_repeats": [1, 3]}
    out = tmp_path / "sweep"
    table = run_sweep(corpus, grid, out, jobs=1)
    before = (out / "sweep.parquet").read_bytes()
    pd.testing.assert_frame_equal(run_sweep(corpus, grid, out, jobs=1), table)
    assert (out / "sweep.parquet").read_bytes() == before

    alone = tmp_path / "alone"
    mine_corpus(corpus, alone, Params.of(theta=1.0, n_repeats=3), jobs=1)
    name = table.query("theta == 1 and n_repeats == 3")["name"].item()
    swept = (out / name / "culture_points.parquet").read_bytes()
    assert swept == (alone / "culture_points.parquet").read_bytes()


def test_quality_by_split_and_beside_other_runs(tmp_path):
    for preset in ("default", "authors"):
        mine_corpus(SAMPLE, tmp_path / preset, Params.of(preset), jobs=1)
    run = tmp_path / "default"
    others = {"authors": tmp_path / "authors"}
    labels = pd.read_csv(SAMPLE / "labels.csv", keep_default_na=False)
    table = evaluate_run(run, labels, others, SAMPLE, split="test", n_boot=50)
    baselines = {"entries", "rejected", "Random", "Mono", "Mono, as many", "Rare words"}
    assert set(table["selection"]) == {POINTS, "authors"} | baselines

    pooled = table[table["lang"] == "all"]
    everything = pooled[pooled["selection"] == "entries"].set_index("measure")
    of_split = labels[labels["split"] == "test"]
    base_rate = (of_split["kind"] == "culture").mean()
    assert everything.loc["precision", "n"] == len(of_split)
    assert everything.loc["precision", "value"] == pytest.approx(base_rate)

    of_points = pooled[pooled["selection"] == POINTS].dropna(subset=["lo", "hi"])
    assert len(of_points)
    assert (of_points["lo"] <= of_points["value"]).all()
    assert (of_points["value"] <= of_points["hi"]).all()


def test_quality_by_language_editions(tmp_path):
    "The silver labels of Wikipedia: in how many of six languages a concept has an article."
    mine_corpus(SAMPLE, tmp_path / "run", jobs=1)
    labels = pd.read_csv(SAMPLE / "labels.csv", keep_default_na=False)
    n_langs6 = np.where(labels["kind"] == "universal", 6, 1)
    silver = labels[["lang", "title"]].assign(n_langs6=n_langs6, n_small_wikis=0)
    table = evaluate_run(tmp_path / "run", silver, corpus=SAMPLE, n_boot=50)
    mean = table.query("lang == 'mean' and measure == 'all six'").set_index("selection")
    in_all_six = mean["value"]
    assert in_all_six[POINTS] < in_all_six["entries"] < in_all_six["rejected"]


def test_the_control_takes_pairs():
    pairs = pd.DataFrame(
        {
            "lang_a": "en",
            "text_a": ["owl", "soap", "bed", "lamp", "horse", "mirror"],
            "lang_b": "de",
            "text_b": ["Eule", "Seife", "Bett", "Lampe", "Pferd", "Spiegel"],
        }
    )
    control = encoder_control(
        load_encoder(), ["de", "en"], Params(), terms=pairs, n_groups=6
    )
    assert control["concepts"] == 6
    assert control["terms"] == 12
    assert control["langs"] == ["de", "en"]
    assert control["retrieval"] > 0.8
    assert control["together"] > control["together_chance"]
