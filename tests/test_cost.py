"""The price of a real run of the sample."""

from pathlib import Path

import pytest

from cmining.core.basics import RunError
from cmining.core.runs import Params, read_record
from cmining.evidence.cost import cost_text, run_cost
from cmining.mine.pipeline import mine_corpus

SAMPLE = Path(__file__).parent.parent / "data" / "sample"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus")
    out = tmp_path_factory.mktemp("runs") / "run"
    for lang in ("ja", "de"):
        (corpus / f"{lang}.jsonl").write_bytes((SAMPLE / f"{lang}.jsonl").read_bytes())
    mine_corpus(corpus, out, Params.of(n_repeats=2), jobs=1)
    return out


def test_the_steps_of_a_run_make_up_its_time(run):
    steps, table = run_cost(run, core_hour=0.04)
    record = read_record(run)
    names = [step["step"] for step in record["steps"]]
    assert list(steps["step"]) == [*names, "rest", "total"]
    assert (steps["seconds"] >= 0).all()
    total = steps.iloc[-1]
    assert total["seconds"] == pytest.approx(record["seconds"], abs=0.1)
    assert total["usd"] == pytest.approx(record["seconds"] / 3600 * 0.04, rel=0.01)
    sources = [source.split(",")[0] for source in table["source"]]
    assert sources == ["reported"] * 3 + ["measured"]


def test_twice_the_price_is_twice_the_cost(run):
    def usd(**price) -> float:
        steps, _ = run_cost(run, **price)
        return steps["usd"].iloc[-1]

    of_cores = usd(core_hour=0.1)
    of_gpu = usd(gpu_hour=0.1)
    assert usd(core_hour=0.2) == pytest.approx(2 * of_cores)
    assert usd(gpu_hour=0.1, gpus=2) == pytest.approx(2 * of_gpu)
    assert usd(core_hour=0.1, gpu_hour=0.1) == pytest.approx(of_cores + of_gpu)


def test_what_was_resumed_is_said(run):
    steps, table = run_cost(run, core_hour=0.04)
    assert "earlier" not in cost_text(steps, table)
    steps.loc[steps.index[-1], "resumed"] = 3
    assert "3 of" in cost_text(steps, table)


def test_no_run_and_no_price(run, tmp_path):
    with pytest.raises(RunError, match="is no finished run"):
        run_cost(tmp_path, core_hour=1)
    with pytest.raises(RunError, match="core_hour or gpu_hour"):
        run_cost(run)
