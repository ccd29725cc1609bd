"""What mining the sample by default must find, over all entries and on the half that no parameter was chosen on."""

from pathlib import Path

import pandas as pd
import pytest

from cmining.core.runs import CANDIDATE, read_run
from cmining.mine.pipeline import mine_corpus

SAMPLE = Path(__file__).parent.parent / "data" / "sample"


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    "The labels with the stage where each entry stopped."
    run = tmp_path_factory.mktemp("run")
    mine_corpus(SAMPLE, run, jobs=1)
    labels = pd.read_csv(SAMPLE / "labels.csv", keep_default_na=False)
    return labels.merge(read_run(run, "entries")[["id", "stage", "reason"]], on="id")


def share(part: pd.Series, whole: pd.Series) -> float:
    return (part & whole).sum() / whole.sum()


@pytest.mark.parametrize("split", ["all", "test"])
def test_precision_and_recall(labels, split):
    if split != "all":
        labels = labels[labels["split"] == split]
    culture = labels["kind"] == "culture"
    selected = labels["stage"] == "culture_point"
    candidate = labels["stage"].isin(CANDIDATE)
    assert share(culture, selected) >= 0.85, "precision"
    of_candidates = share(selected, culture & candidate)
    assert of_candidates >= 0.6, "selected of the culture entries that reach stage 2"
    assert share(selected, culture) >= 0.3, "selected of all culture entries"


@pytest.mark.parametrize("lang", ["de", "en", "es", "fr", "ja", "zh"])
def test_precision_in_each_language(labels, lang):
    of_lang = labels[labels["lang"] == lang]
    selected = of_lang["stage"] == "culture_point"
    assert share(of_lang["kind"] == "culture", selected) >= 0.7


def test_noise_is_pruned_and_nothing_else(labels):
    pruned = labels["stage"] == "pruned"
    assert share(pruned, labels["kind"] == "functional") >= 0.95
    assert not (pruned & labels["kind"].isin(["universal", "culture"])).any()
