"""The whole experiment, on a toy: every arm in the same way, and going on changes nothing."""

import json
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="training needs pip install 'cmining[train]'")

from cmining.train.downstream import Study, run_downstream
from cmining.train.tune import TuneParams

SAMPLE = Path(__file__).parent.parent / "data" / "sample"


@pytest.fixture(scope="module")
def finished(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("downstream")
    study = Study(
        items=12,
        seeds=2,
        share=0.2,
        questions=3,
        training=TuneParams(rate=0.01, batch=8, epochs=1.0, rank=4),
    )
    bench = out / "own"
    bench.mkdir()
    rows = [
        {
            "id": f"{country}-{i}",
            "country": country,
            "lang": "en",
            "question": f"Which dish is eaten on day {i} of the feast?",
            "options": ["soup", "bread", "rice", "fish"],
            "answer": i % 4,
        }
        for country in ("Here", "There")
        for i in range(4)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (bench / "blend_mc.jsonl").write_text(lines)
    seeds = out / "cube.json"
    dishes = ["ftira", "pastizzi", "timpana"]
    seeds.write_text(
        json.dumps(
            [{"name": name, "country": "Malta", "domain": "cuisine"} for name in dishes]
        )
    )

    def run():
        report = out / "report" / "results.json"
        summary = run_downstream(
            SAMPLE, tiny_llama, out / "work", report, study, bench, seeds
        )
        return summary, report.read_bytes()

    return out, run(), run


def test_every_arm_is_trained_and_judged_alike(finished):
    out, (summary, _), _ = finished
    arms = summary["arms"]
    assert set(arms) == {"base", "random", "mono", "full", "cube"}
    assert arms["base"]["seeds"] == [] and arms["full"]["seeds"] == [0, 1]
    assert arms["random"]["items"] == arms["mono"]["items"] == arms["full"]["items"] == 12
    tasks = {"held_out_text", "shared_text", "blend_mc_text"}
    assert set(summary["tasks"]) == tasks
    for arm in arms.values():
        assert set(arm["scores"]) == tasks
    assert summary["tasks"]["held_out_text"]["chance"] == 0.25
    assert summary["arms"]["base"]["scores"]["blend_mc_text"]["n"] == 3
    assert summary["study"]["items"] == 12


def test_no_item_names_what_is_held_out(finished):
    out, _, _ = finished
    held_out = (out / "work/bench/held_out.jsonl").read_text(encoding="utf-8")
    concepts = {json.loads(line)["concept"] for line in held_out.splitlines()}
    for file in (out / "work/items").rglob("items-*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            points = [*item["culture_points"], *item["distractors"]]
            assert not concepts & {point["title"] for point in points}, file


def test_the_same_call_changes_nothing(finished):
    out, (_, report), run = finished
    adapters = sorted((out / "work/adapters").rglob("adapter_model.safetensors"))
    made = [path.stat().st_mtime_ns for path in adapters]
    assert len(adapters) == 8
    assert run()[1] == report
    assert [path.stat().st_mtime_ns for path in adapters] == made


def test_answers_are_kept_to_be_shown(finished):
    _, (summary, _), _ = finished
    assert summary["answers"]
