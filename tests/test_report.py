"""Reports: figure notebooks can be given a run, the same run gives the same bytes, and titles stay text."""

import json
import re
import shutil
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from cmining.core.basics import RunError
from cmining.core.runs import read_run
from cmining.mine.pipeline import mine_corpus
from cmining.viz.report import (
    FIGURES,
    declared_parameters,
    figure_notebooks,
    make_report,
    new_notebook,
    runs_table,
)

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "sample"
notebooks = figure_notebooks()


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", notebooks, ids=lambda p: p.stem)
def test_figure_notebooks_can_be_given_a_run(path):
    assert sum("parameters" in c["metadata"].get("tags", ()) for c in cells(path)) == 1
    assert {"run_dir", "save_to"} <= declared_parameters(path)
    first = "".join(cells(path)[0]["source"])
    assert first.startswith("# ")
    assert "\n> " in first
    outputs = [output for cell in cells(path) for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", ())]
    assert pictures, "keep the output of the default run"


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "sample"
    mine_corpus(SAMPLE, run, jobs=1)
    return run


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory):
    "The sample with titles that are markup and broken formulas."
    corpus, run = (
        tmp_path_factory.mktemp("hostile") / name for name in ("corpus", "<b>run")
    )
    corpus.mkdir()
    for path in SAMPLE.glob("*.jsonl"):
        rows = [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for row in rows:
            row["title"] = f"<script>{row['title'][:3]}</script>$\\frac{{"
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (corpus / path.name).write_text("\n".join(lines), encoding="utf-8")
    mine_corpus(corpus, run, jobs=1)
    assert len(read_run(run, "culture_points"))
    return run


def some(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(FIGURES / f"{name}.ipynb", folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_twice_the_same_bytes_and_titles_stay_text(hostile_run, tmp_path):
    figures = some(tmp_path / "figures", "fig2_tsne", "fig7_culture_points")
    out = tmp_path / "report"
    new_notebook(figures / "fig_mine.ipynb")  # its table shows titles
    assert make_report([hostile_run], out, {"n_per_lang": 40}, figures) == {}
    first = contents(out)
    shutil.rmtree(out)
    make_report([hostile_run], out, {"n_per_lang": 40}, figures)
    assert contents(out) == first
    suffixes = ("html", "ipynb", "svg", "png", "csv")
    assert {"index.html", *(f"fig2_tsne.{suffix}" for suffix in suffixes)} <= set(first)
    pages = {
        name: text.decode()
        for name, text in first.items()
        if name.endswith((".html", ".svg"))
    }
    for name, text in pages.items():
        assert "<script" not in text, name
        assert "<b>run" not in text, name
        loads = re.search(r'(?:src|href)="(?:https?:)?//|@import', text)
        assert not loads, f"{name} loads from the network"
    assert "&lt;script&gt;" in pages["fig_mine.html"]  # pandas' table, escaped


def test_runs_side_by_side(sample_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sample_run, other)
    out = tmp_path / "report"
    figures = some(tmp_path / "figures", "fig7_culture_points")
    assert make_report([sample_run, other], out, figures=figures, small=True) == {}
    assert set(contents(out)) == {
        "index.html",
        "sample/fig7_culture_points.svg",
        "sample/fig7_culture_points.csv",
        "other/fig7_culture_points.svg",
        "other/fig7_culture_points.csv",
    }
    index = (out / "index.html").read_text()
    first = index.index("sample/fig7_culture_points.svg")
    assert first < index.index("other/fig7_culture_points.svg")


def test_the_index_names_changed_parameters(sample_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(sample_run, other)
    record = json.loads((other / "run.json").read_text())
    record["params"] |= {"theta": 0.5, "n_repeats": 3}
    (other / "run.json").write_text(json.dumps(record))
    table = runs_table({"sample": sample_run, "other": other})
    assert "<td>the defaults</td>" in table
    assert "<td>n_repeats = 3, theta = 0.5</td>" in table


def test_refusals(sample_run, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="did you mean 'n_per_lang'"):
        make_report([sample_run], tmp_path / "out", {"n_per_lnag": 3})
    with pytest.raises(RunError, match="no finished run"):
        make_report([tmp_path], tmp_path / "out")
    with pytest.raises(RunError, match="two runs are named sample"):
        make_report([sample_run, sample_run], tmp_path / "out")
    with pytest.raises(RunError, match="there are no notebooks"):
        make_report([sample_run], tmp_path / "out", figures=tmp_path)
    assert not (tmp_path / "out").exists()
    # installed without the checkout
    monkeypatch.setattr("cmining.viz.report.FIGURES", tmp_path)
    with pytest.raises(RunError, match="part of the checkout"):
        figure_notebooks()


def execute(path: Path, parameters: dict) -> None:
    "The cells of a notebook in this process: quicker than a kernel."
    space = {"display": lambda *_: None}
    for cell in cells(path):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), path.name, "exec"), space)
        if "parameters" in cell["metadata"].get("tags", ()):
            space |= parameters


def test_results_and_sweeps_from_files(sample_run, tmp_path):
    sweep = tmp_path / "sweep.csv"
    sweep.write_text(
        "name,theta,culture_point,precision,precision lo,precision hi\n"
        "0,0.4,9,0.5,0.4,0.6\n"
        "1,0.8,4,0.9,0.8,1.0\n"
    )
    (tmp_path / "results.csv").write_text(
        "figure,item,measure,value,theta\n"
        "fig4,$\\frac{,zh,3.1,\n"
        "fig5,$a$,$b$,35,0.4\n"
        "fig5,$a$,$b$,41,0.8\n"
        "fig5,c,$b$,41,0.8\n"
    )
    given = {
        "run_dir": str(sample_run),
        "save_to": str(tmp_path),
        "results": str(tmp_path / "results.csv"),
    }
    execute(FIGURES / "results.ipynb", given)
    execute(FIGURES / "fig5_theta.ipynb", given | {"sweep": str(sweep)})
    assert pd.read_csv(tmp_path / "fig5_theta.csv")["culture_point"].tolist() == [9, 4]
    assert pd.read_csv(tmp_path / "fig4.csv")["item"].tolist() == ["$\\frac{"]
    with sweep.open("a") as f:
        f.write("2,0.8,5,0.9,0.8,1.0\n")
    with pytest.raises(ValueError, match="several rows for one theta"):
        execute(FIGURES / "fig5_theta.ipynb", given | {"sweep": str(sweep)})


REPORT = ROOT / "reports" / "sample"
SECONDS = "table6_cost"  # its numbers differ from run to run


def test_sample_report_is_current(sample_run, tmp_path):
    """The numbers of reports/sample are those of today's code.

    make report writes them anew.
    """
    written = sorted(path for path in REPORT.glob("*.csv") if path.stem != SECONDS)
    if not written:
        pytest.skip("reports/sample is not there")
    given = {
        "run_dir": str(sample_run),
        "save_to": str(tmp_path),
        "labels": str(SAMPLE / "labels.csv"),
        "translations": str(SAMPLE / "labels.csv"),
    }
    for path in notebooks:
        if path.stem != SECONDS:
            names = declared_parameters(path)
            execute(path, {key: given[key] for key in given if key in names})
    assert {p.name for p in written} == {p.name for p in tmp_path.glob("*.csv")}
    for path in written:
        pd.testing.assert_frame_equal(
            pd.read_csv(path),
            pd.read_csv(tmp_path / path.name),
            rtol=0.02,
            atol=0.02,
            obj=f"{path.name} (make report)",
        )
