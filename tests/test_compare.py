"""Comparing arms: intervals that cover, tests of the right size, folders that do not go together."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cmining.core.basics import CorpusError, RunError
from cmining.instruct.items import check_item
from cmining.train.compare import (
    answer_questions,
    comparison_text,
    estimate_difference,
    holm,
    mcnemar,
    most_different,
    smallest_effect_of,
    summarize_results,
)
from cmining.train.overlap import measure_overlap, overlap_table

HOSTILE = "<b>\x1b[31mred</b>\u202e\n$x"


def simulate(rng, n_seeds=(3, 1), n=200, gain=0.0, seed_sd=0.0, luck=0.3, rows=1):
    """Two arms, the first better by `gain`; `rows` questions share a unit.

    The seeds of an arm differ by `seed_sd`; `luck` is the share of answers that two
    trainings do not have in common."""
    unit = np.repeat(np.arange(n), rows)
    difficulty = rng.uniform(0.3, 0.7, n)
    temper = rng.random(n)
    arms = []
    for seeds, better in zip(n_seeds, (gain, 0)):
        spread = seed_sd if seeds > 1 else 0
        chance = difficulty + better + rng.normal(0, spread, (seeds, 1))
        own = rng.random((seeds, n)) < luck
        dice = np.where(own, rng.random((seeds, n)), temper)[:, unit]
        if rows > 1:  # of one question most are right or wrong together
            odd = rng.random(dice.shape) < 0.2
            dice = np.where(odd, rng.random(dice.shape), dice)
        arms.append((dice < chance[:, unit]).astype(float))
    return *arms, unit


CASES = {
    "one seed each": dict(n_seeds=(1, 1)),
    "three seeds that do not differ": dict(),
    "three seeds that differ a little": dict(seed_sd=0.02),
    "three seeds that differ much": dict(seed_sd=0.06),
    "three seeds each": dict(n_seeds=(3, 3), seed_sd=0.03),
    "four rows a question": dict(rows=4, n=100),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_interval_covers_and_the_test_has_its_size(case):
    rng = np.random.default_rng(1)
    n_experiments = 250
    covered = found = 0
    for _ in range(n_experiments):
        first, second, unit = simulate(rng, gain=0.05, **case)
        result = estimate_difference(first, second, unit, n_boot=120)
        covered += result["lo"] <= 0.05 <= result["hi"]
        first, second, unit = simulate(rng, **case)
        found += estimate_difference(first, second, unit, n_boot=120)["p"] < 0.05
    # 95 and 5 %, within three standard errors of 250 experiments, and a little
    assert 0.9 <= covered / n_experiments <= 1
    assert found / n_experiments <= 0.1


def test_drawn_one_by_one_rows_of_a_question_claim_too_much():
    rng = np.random.default_rng(2)
    first, second, unit = simulate(rng, n=100, rows=4)
    together = estimate_difference(first, second, unit)
    alone = estimate_difference(first, second)
    assert together["hi"] - together["lo"] > 1.2 * (alone["hi"] - alone["lo"])


def test_the_smallest_effect_is_found_four_times_out_of_five():
    rng = np.random.default_rng(3)
    first, second, _ = simulate(rng, n_seeds=(1, 1), n=4000)
    disagree = (first != second).mean()
    gain = smallest_effect_of(300, disagree)
    found = []
    for _ in range(300):
        first, second, _ = simulate(rng, n_seeds=(1, 1), n=300, gain=gain)
        found.append(estimate_difference(first, second, n_boot=120)["p"] < 0.05)
    assert 0.7 < np.mean(found) < 0.9


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_mcnemar_is_the_binomial_test(pairs):
    first, second = np.array(pairs).T
    only_first, only_second, p = mcnemar(first, second)
    n = only_first + only_second
    assert p == pytest.approx(stats.binomtest(only_first, n).pvalue if n else 1)
    assert mcnemar(second, first) == (only_second, only_first, p)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_lies_between_nothing_and_bonferroni(p):
    p = np.array(p)
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(len(p) * p, 1) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_equal_arms_are_not_certain():
    "None of 300 differs, but one in a hundred might."
    same = np.ones(300)
    result = estimate_difference(same, same)
    assert result["difference"] == 0
    assert -0.02 < result["lo"] < -0.005 < 0.005 < result["hi"] < 0.02
    assert 0.005 < result["smallest"] < 0.03
    assert result["p"] == 1


def write_result(
    out: Path,
    arm: str,
    seed: int | None,
    scores,
    task: str = "held_out",
    about: dict | None = None,
    lines: list[dict] | None = None,
    **more,
) -> Path:
    "A RESULTS folder with one task, as cmining evaluate writes it."
    lines = lines or [{"id": f"q{i}", "lang": "en"} for i in range(len(scores))]
    rows = [line | {"correct": score} for line, score in zip(lines, scores)]
    task_record = {"metric": "accuracy", "value": float(np.mean(scores)), "n": len(rows)}
    task_record |= {"chance": 0.25, "digest": "d", **(about or {})}
    record = {"arm": arm, "seed": seed, "model": "hub/tiny", "tasks": {task: task_record}}
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(record | more))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (out / f"questions-{task}.jsonl").write_text(text)
    return out


def half(n: int = 40, right: int = 20) -> list[int]:
    return [int(i < right) for i in range(n)]


def test_arms_seeds_and_tasks_are_found_wherever_they_lie(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "run.json").write_text('{"items": 12, "tokens": 345}')
    write_result(tmp_path / "a/x", "base", None, half())
    write_result(tmp_path / "a/y", "base", None, half(), task="global_mmlu_lite")
    for seed in range(3):
        out = tmp_path / f"b/seed-{seed}"
        write_result(out, "full", seed, half(right=35), adapter=str(adapter))
    write_result(tmp_path / "c", "full", 0, half(), "global_mmlu_lite", adapter="gone")
    summary = summarize_results([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    full = summary["arms"]["full"]
    assert (full["items"], full["tokens"], full["seeds"]) == (12, 345, [0, 1, 2])
    assert full["scores"]["held_out"]["value"] == 35 / 40
    assert full["scores"]["held_out"]["by_seed"] == {"0": 0.875, "1": 0.875, "2": 0.875}
    assert [c["task"] for c in summary["comparisons"]] == ["held_out"]
    assert [g["verdict"] for g in summary["guards"]] == ["open"]  # 40 questions are few
    assert summary["notes"][0].startswith("One seed only: full.")
    mcnemar_of_seed = summary["comparisons"][0]["mcnemar"][0]
    assert (mcnemar_of_seed["only_first"], mcnemar_of_seed["only_second"]) == (15, 0)
    # a summary that lies among the folders is no result
    (tmp_path / "a/results.json").write_text(json.dumps(summary))
    again = summarize_results([tmp_path])
    assert again == summary
    assert "full beats base on held_out" in comparison_text(again)


def test_the_mean_of_countries_is_recognised(tmp_path):
    lines = [{"id": i, "country": "MX" if i < 10 else "CN"} for i in range(40)]
    scores = half(right=10)
    value = {"value": 0.5, "metric": "accuracy"}  # all of Mexico, nothing of China
    write_result(tmp_path, "base", None, scores, "blend_mc", value, lines)
    score = summarize_results([tmp_path])["arms"]["base"]["scores"]["blend_mc"]
    assert score["value"] == 0.5
    assert score["by_country"]["MX"]["value"] == 1
    assert score["by_country"]["CN"]["n"] == 30


def test_judgements_become_questions(tmp_path):
    lines = [{"id": i, "question_id": i // 4} for i in range(80)]
    scores = [1, 1, 1, 0] * 19 + [1] * 4
    about = {"metric": "question_accuracy", "value": 1 / 20}
    write_result(tmp_path, "base", None, scores, "culturalbench_hard", about, lines)
    summary = summarize_results([tmp_path])
    score = summary["arms"]["base"]["scores"]["culturalbench_hard"]
    assert (score["value"], score["n"]) == (0.05, 20)


def broken_folders(tmp_path) -> dict[str, tuple[str, object]]:
    "What is wrong, the words of the error, and how it is done to a second folder."

    def write(*args, **kwargs):
        return lambda out: write_result(out, *args, **kwargs)

    def replace(name, old, new):
        def change(out):
            path = write_result(out, "full", 0, half()) / name
            path.write_text(re.sub(old, new, path.read_text(), count=1))

        return change

    questions = "questions-held_out.jsonl"
    return {
        "other questions": ("1 are missing", write("full", 0, half()[:-1])),
        "other data": ("digests", write("full", 0, half(), about={"digest": "e"})),
        "other number": ("says 0.9000", write("full", 0, half(), about={"value": 0.9})),
        "twice": ("in another folder", write("base", None, half())),
        "no arm": ("has no arm", replace("results.json", '"arm"', '"arms_"')),
        "no JSON": ("as JSON", replace("results.json", "{", "")),
        "a list": ("no JSON object", replace("results.json", "^.*$", "[]")),
        "no value": (
            "has no value",
            replace("results.json", '"value": [0-9.]+', '"a": 1'),
        ),
        "no id": ("line 1 has no id", replace(questions, '"id"', '"name"')),
        "no score": ("line 1: correct is", replace(questions, '"correct": 1', '"c": 1')),
        "no number": ("correct is a score", replace(questions, "1}", "7}")),
        "cut": ("line 1 is no JSON", replace(questions, "}", "")),
        "a question twice": ("'q1' twice", replace(questions, "q0", "q1")),
    }


@pytest.mark.parametrize("fault", broken_folders(Path()))
def test_what_does_not_go_together_is_refused(fault, tmp_path):
    words, make = broken_folders(tmp_path)[fault]
    write_result(tmp_path / "base", "base", None, half())
    make(tmp_path / "other")
    with pytest.raises(RunError, match=re.escape(words)) as error:
        summarize_results([tmp_path])
    assert "other" in str(error.value) or "base" in str(error.value)


def test_several_models_are_kept_apart(tmp_path):
    for model in ("a", "b"):
        write_result(tmp_path / model / "base", "base", None, half(), model=model)
        write_result(tmp_path / model / "full", "full", 0, half(right=30), model=model)
    summary = summarize_results([tmp_path])
    pairs = [(c["first"], c["second"]) for c in summary["comparisons"]]
    assert pairs == [("full (a)", "base (a)"), ("full (b)", "base (b)")]


def test_hostile_names_stay_on_their_line(tmp_path):
    lines = [{"id": i, "country": HOSTILE if i % 2 else "CN"} for i in range(40)]
    write_result(tmp_path / "base", "base", None, half(), lines=lines)
    write_result(tmp_path / "other", HOSTILE, 0, half(right=30), lines=lines)
    text = comparison_text(summarize_results([tmp_path]))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "red</b> $x beats base" in text


def test_few_questions_have_no_interval(tmp_path):
    write_result(tmp_path / "base", "base", None, half(6, 3))
    write_result(tmp_path / "full", "full", 0, half(6, 6))
    summary = summarize_results([tmp_path])
    assert summary["comparisons"][0]["ci"] == [None, None]
    assert "fewer than 10 independent questions" in comparison_text(summary)


def test_answers_are_chosen_by_a_rule(tmp_path):
    base = write_result(tmp_path / "base", "base", None, half())
    full = write_result(tmp_path / "full", "full", 0, half(right=30))
    for folder, answers in ((base, "AAA"), (full, "AZ\u2028")):
        rows = [
            {"id": i, "question": HOSTILE, "answer": 5 * answer}
            for i, answer in enumerate(answers)
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "answers.jsonl").write_text(text, encoding="utf-8")
    shown = summarize_results([tmp_path])["answers"]
    assert [row["id"] for row in shown] == ["1", "2", "0"]
    assert shown[0]["answers"] == {"base": "AAAAA", "full": "ZZZZZ"}
    (full / "answers.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(RunError, match="line 1: a line has id"):
        summarize_results([tmp_path])


def test_most_different_breaks_ties_by_id():
    assert [id for id, _ in most_different(dict(b="x", a="y"), dict(a="z", b="w"))] == [
        "a",
        "b",
    ]


def test_a_model_answers_greedily():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<end>", "<unk>", *"what is a maypole tea dance".split()]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=0,
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    questions = ["what is a maypole", "what is tea"]
    answers = answer_questions(llama, fast, questions, max_tokens=5)
    assert len(answers) == 2
    assert answers == answer_questions(llama, fast, questions, max_tokens=5)
    assert all(len(answer.split()) <= 5 for answer in answers)
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} a{% endfor %}"
    asked = answer_questions(llama, fast, ["what is"], max_tokens=5)
    fast.chat_template = None
    # the template's words were read; without it a newline is added, which is no token
    assert asked == answer_questions(llama, fast, ["what is a"], max_tokens=5)


def item(n: int, question: str) -> str:
    row = {
        "id": str(n),
        "task": "short_answer",
        "lang": "en",
        "question": question,
        "answer": "Nobody",
        "explanation": "So it is told.",
        "culture_points": [{"id": "p", "lang": "en", "title": "Tea"}],
        "group": 0,
        "generator": "offline",
        "prompt_version": "1",
        "key": "k",
        "seed": 0,
        "run": "f00d",
    }
    return check_item(row).model_dump_json() + "\n"


LONG = (
    "Who carries the decorated trunk through the whole village before the first of May?"
)


def test_overlap_is_counted_for_each_arm_and_benchmark(tmp_path):
    for arm, questions in (
        ("full", [LONG, "Which dance is it?"]),
        ("random", ["Why so?!"]),
    ):
        (tmp_path / arm).mkdir()
        lines = [item(n, question) for n, question in enumerate(questions)]
        (tmp_path / arm / "items-00000.jsonl").write_text("".join(lines))
    (tmp_path / "full/run.json").write_text('{"arm": "full"}')
    for name, question in (("one", f"Tell me. {LONG}"), ("two", f"{LONG[::-1]} a b")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": question}) + "\n")
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    overlap = measure_overlap([tmp_path / "full", tmp_path / "random"], files)
    assert overlap["full"]["one"] == {"items": 2, "shared": 1, "share": 0.5}
    assert overlap["full"]["two"]["shared"] == overlap["random"]["one"]["shared"] == 0
    assert overlap_table(overlap)["one"].tolist() == ["1 (50.0%)", "0 (0.0%)"]
    (tmp_path / "one.jsonl").write_text("nothing\n")
    with pytest.raises(CorpusError, match="line 1 is no JSON"):
        measure_overlap([tmp_path / "full"], files)
