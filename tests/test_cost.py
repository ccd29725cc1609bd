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
    assert list(steps["step"]) == [*(s["step"] for s in record["steps"]), "rest", "total"]
    assert (
        steps["seconds"].iloc[-1] == pytest.approx(record["seconds"], abs=0.1)
        and (steps["seconds"] >= 0).all()
    )
    assert steps["usd"].iloc[-1] == pytest.approx(
        record["seconds"] / 3600 * 0.04, rel=0.01
    )
    assert [s.split(",")[0] for s in table["source"]] == ["reported"] * 3 + ["measured"]


def test_twice_the_price_is_twice_the_cost(run):
    usd = [
        run_cost(run, **price)[0]["usd"].iloc[-1]
        for price in (
            dict(core_hour=0.1),
            dict(core_hour=0.2),
            dict(gpu_hour=0.1),
            dict(gpu_hour=0.1, gpus=2),
            dict(core_hour=0.1, gpu_hour=0.1),
        )
    ]
    assert (
        usd[1] == pytest.approx(2 * usd[0])
        and usd[3] == pytest.approx(2 * usd[2])
        and usd[4] == pytest.approx(usd[0] + usd[2])
    )


def test_what_was_resumed_is_said(run):
    steps, table = run_cost(run, core_hour=0.04)
    assert "earlier" not in cost_text(steps, table)
    steps.loc[steps.index[-1], "resumed"] = 3
    assert "3 of" in cost_text(steps, table)


def test_no_run_and_no_price(run, tmp_path):
    with pytest.raises(RunError, match="is no finished run"):
        run_cost(tmp_path, core_hour=1)
    with pytest.raises(RunError, match="--core-hour or --gpu-hour"):
        run_cost(run)
