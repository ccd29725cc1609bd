"""What mining the sample by default must find, over all entries and on the half that no parameter was chosen on."""

from pathlib import Path

import pandas as pd
import pytest

from cmining.core.runs import read_run
from cmining.mine.pipeline import mine_corpus

SAMPLE = Path(__file__).parent.parent / "data" / "sample"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    "The labels with the stage where each entry stopped."
    run = tmp_path_factory.mktemp("run")
    mine_corpus(SAMPLE, run, jobs=1)
    labels = pd.read_csv(SAMPLE / "labels.csv", keep_default_na=False)
    return labels.merge(read_run(run, "entries")[["id", "stage", "reason"]], on="id")


def share(part: pd.Series, whole: pd.Series) -> float:
    return (part & whole).sum() / whole.sum()


@pytest.mark.parametrize("split", ["all", "test"])
def test_precision_and_recall(found, split):
    found = found if split == "all" else found[found["split"] == split]
    culture = found["kind"] == "culture"
    selected = found["stage"] == "culture_point"
    reached = found["stage"].isin(["small", "mixed", "culture_point"])
    assert share(culture, selected) >= 0.85, "precision"
    assert share(selected, culture & reached) >= 0.6, (
        "selected of the culture entries that reach stage 2"
    )
    assert share(selected, culture) >= 0.3, "selected of all culture entries"


@pytest.mark.parametrize("lang", ["de", "en", "es", "fr", "ja", "zh"])
def test_precision_in_each_language(found, lang):
    mine = found[found["lang"] == lang]
    assert share(mine["kind"] == "culture", mine["stage"] == "culture_point") >= 0.7


def test_noise_is_pruned_and_nothing_else(found):
    pruned = found["stage"] == "pruned"
    assert share(pruned, found["kind"] == "functional") >= 0.95
    assert not (pruned & found["kind"].isin(["universal", "culture"])).any()
