"""What mining the sample by default must find, over all entries and on the half that no parameter was chosen on."""

from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from cmining.core.basics import RunError
from cmining.core.runs import CANDIDATE, Params, read_run
from cmining.evidence.quality import read_labels
from cmining.mine.pipeline import mine_corpus

SAMPLE = Path(__file__).parent.parent / "data" / "sample"


def mined_labels(run: Path, select: str) -> pd.DataFrame:
    "The labels of the sample with what a run says of each entry."
    mine_corpus(SAMPLE, run, Params.of(select=select), jobs=1)
    labels = pd.read_csv(SAMPLE / "labels.csv", keep_default_na=False)
    columns = ["id", "stage", "reason", "isolation"]
    return labels.merge(read_run(run, "entries")[columns], on="id")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    "By isolation, the default."
    return mined_labels(tmp_path_factory.mktemp("run"), "isolation")


@pytest.fixture(scope="module")
def island_labels(tmp_path_factory):
    return mined_labels(tmp_path_factory.mktemp("islands"), "islands")


def share(part: pd.Series, whole: pd.Series) -> float:
    return (part & whole).sum() / whole.sum()


@pytest.mark.parametrize("split", ["all", "test"])
def test_precision_and_recall_by_islands(island_labels, split):
    labels = island_labels
    if split != "all":
        labels = labels[labels["split"] == split]
    culture = labels["kind"] == "culture"
    selected = labels["stage"] == "culture_point"
    candidate = labels["stage"].isin(CANDIDATE)
    assert share(culture, selected) >= 0.85, "precision"
    of_candidates = share(selected, culture & candidate)
    assert of_candidates >= 0.6, "selected of the culture entries that reach stage 2"
    assert share(selected, culture) >= 0.3, "selected of all culture entries"


def test_isolation_on_the_test_half(labels):
    labels = labels[(labels["split"] == "test") & (labels["stage"] != "pruned")]
    culture = labels["kind"] == "culture"
    selected = labels["stage"] == "culture_point"
    assert average_precision_score(culture, labels["isolation"]) >= 0.87
    precision = share(culture, selected)
    recall = share(selected, culture)
    assert precision >= 0.8
    assert 2 * precision * recall / (precision + recall) >= 0.84
    for lang, of_lang in labels.groupby("lang"):
        of_culture = of_lang[of_lang["kind"] == "culture"]
        assert (of_culture["stage"] == "culture_point").mean() >= 0.7, lang


@pytest.mark.parametrize("lang", ["de", "en", "es", "fr", "ja", "zh"])
def test_precision_in_each_language(island_labels, lang):
    labels = island_labels
    of_lang = labels[labels["lang"] == lang]
    selected = of_lang["stage"] == "culture_point"
    assert share(of_lang["kind"] == "culture", selected) >= 0.7


def test_noise_is_pruned_and_nothing_else(labels):
    pruned = labels["stage"] == "pruned"
    assert share(pruned, labels["kind"] == "functional") >= 0.95
    assert not (pruned & labels["kind"].isin(["universal", "culture"])).any()


@pytest.mark.parametrize(
    "text, fault",
    [
        ("identifier,language\nx,de\n", "needs lang, id or title"),
        ("lang,title,kind\n", "has no rows"),
        ("lang,title,kind\nen,Tea,culture\n", "none of the 1 labels"),
        ("lang,title,n_langs6\nde,Weinfest,six\n", "is a number, not 'six'"),
        ("", "is no table of labels"),
        ('lang,title,kind\n"de,Tee,culture\n', "is no table of labels"),
    ],
)
def test_labels_that_are_none(tmp_path, text, fault):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    entries = pd.DataFrame({"lang": ["de"], "id": ["1"], "title": ["Weinfest"]})
    with pytest.raises(RunError, match=fault):
        read_labels(path, entries)


def test_titles_that_are_numbers_and_cells_that_are_empty(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("lang,title,kind,n_langs6\nde,1984,culture,6\nde,Tee,,\n")
    entries = pd.DataFrame({"lang": "de", "title": ["Tee", "1984"]})
    joined = read_labels(path, entries)
    assert joined["kind"].tolist()[1:] == ["culture"]
    assert joined["n_langs6"].tolist()[1:] == [6]
    assert joined.iloc[0].isna().all()
