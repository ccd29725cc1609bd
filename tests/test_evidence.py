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
from cmining.mine import sort
from cmining.mine.control import encoder_control
from cmining.mine.pipeline import load_vectors, mine_corpus
from cmining.models.encode import load_encoder

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
SCRIPT = "<script>alert('1')</script>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two languages of the sample, one with a hostile title, and a third language with a
    single entry.
    """
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
        told = explain_entry(run, entry.id, entry.lang)
        json.dumps(told, allow_nan=False)
        assert all(t["passed"] for t in told["tests"]) == (entry.stage == "culture_point")
        assert told["changes"] and "nan" not in explain_text(told).split()
        assert "<script" not in explain_html(told)


def test_every_group_can_be_explained(run):
    entries = read_run(run, "entries")
    for group in read_run(run, "groups").itertuples():
        told = explain_group(run, group.group, k=1000)
        json.dumps(told, allow_nan=False)
        assert sorted(t["title"] for t in told["terms"]) == sorted(
            entries.loc[entries["group"] == group.group, "title"]
        )


def test_neighbors_equal_the_naive_ones(run):
    entries = read_run(run, "entries")
    shards = read_record(run)["vectors"]
    assert len(shards["es"]) > 2
    kept = entries[entries["stage"] != "pruned"]
    x = {
        lang: load_vectors([run / "work" / s for s in shards[lang]]).astype(np.float32)
        for lang in shards
    }
    for row in kept.index[::37]:
        lang = entries["lang"][row]
        query = x[lang][list(kept.index[kept["lang"] == lang]).index(row)]
        found = neighbors(run, entries, row)
        for other in x:
            rows = kept.index[kept["lang"] == other]
            near = sorted(zip(-(x[other] @ query), rows))
            assert [n["title"] for n in found[other]] == [
                entries["title"][r] for _, r in near if r != row
            ][:3]


def test_the_funnel_loses_nothing(run):
    table = funnel(run)
    entries = read_run(run, "entries")
    for lang, steps in table.groupby("lang"):
        size = len(entries) if lang == "all" else (entries["lang"] == lang).sum()
        assert (
            steps["stopped"].sum() + steps["remain"].iloc[-1]
            == size
            == steps["entered"].iloc[0]
        )


def test_sweep_is_mining_again_and_can_be_repeated(corpus, tmp_path):
    grid = {"theta": [0.6, 1.0], "n_repeats": [1, 3]}
    table = run_sweep(corpus, grid, tmp_path / "sweep", jobs=1)
    before = (tmp_path / "sweep" / "sweep.parquet").read_bytes()
    pd.testing.assert_frame_equal(
        run_sweep(corpus, grid, tmp_path / "sweep", jobs=1), table
    )
    assert (tmp_path / "sweep" / "sweep.parquet").read_bytes() == before
    mine_corpus(corpus, tmp_path / "alone", Params.of(theta=1.0, n_repeats=3), jobs=1)
    name = table.query("theta == 1 and n_repeats == 3")["name"].item()
    assert (tmp_path / "sweep" / name / "culture_points.parquet").read_bytes() == (
        tmp_path / "alone" / "culture_points.parquet"
    ).read_bytes()


def test_quality_by_split_and_beside_other_runs(tmp_path):
    for preset in ("default", "authors"):
        mine_corpus(SAMPLE, tmp_path / preset, Params.of(preset), jobs=1)
    labels = pd.read_csv(SAMPLE / "labels.csv", keep_default_na=False)
    told = evaluate_run(
        tmp_path / "default",
        labels,
        {"authors": tmp_path / "authors"},
        SAMPLE,
        split="test",
        n_boot=50,
    )
    assert set(told["selection"]) == {
        "entries",
        "rejected",
        POINTS,
        "Random",
        "Mono",
        "Mono, as many",
        "Rare words",
        "authors",
    }
    everything = told.query("selection == 'entries' and lang == 'all'").set_index(
        "measure"
    )
    test = labels[labels["split"] == "test"]
    assert everything.loc["precision", "n"] == len(test)
    assert everything.loc["precision", "value"] == pytest.approx(
        (test["kind"] == "culture").mean()
    )
    inside = told.dropna(subset=["lo", "hi"]).query(
        "selection == @POINTS and lang == 'all'"
    )
    assert (
        len(inside)
        and (inside["lo"] <= inside["value"]).all()
        and (inside["value"] <= inside["hi"]).all()
    )
    silver = labels.assign(
        n_langs6=np.where(labels["kind"] == "universal", 6, 1), n_small_wikis=0
    ).drop(columns=["id", "kind", "split"])
    told = (
        evaluate_run(tmp_path / "default", silver, corpus=SAMPLE, n_boot=50)
        .query("lang == 'mean' and measure == 'all six'")
        .set_index("selection")["value"]
    )
    assert told[POINTS] < told["entries"] < told["rejected"]


def test_the_control_takes_pairs():
    pairs = pd.DataFrame(
        {
            "lang_a": "en",
            "text_a": ["owl", "soap", "bed", "lamp", "horse", "mirror"],
            "lang_b": "de",
            "text_b": ["Eule", "Seife", "Bett", "Lampe", "Pferd", "Spiegel"],
        }
    )
    told = encoder_control(load_encoder(), ["de", "en"], Params(), terms=pairs, n_groups=6)
    assert (told["concepts"], told["terms"], told["langs"]) == (6, 12, ["de", "en"])
    assert told["retrieval"] > 0.8 and told["together"] > told["together_chance"]
