"""Survey questions and values: the two defects of the released scoring, with the right value beside each."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from cmining.align.survey import (
    SurveyQuestion,
    option_orders,
    read_survey,
    survey_prompt,
)
from cmining.align.values import (
    ask_survey,
    count_moved,
    count_nearer,
    country_distances,
    divergence,
    evaluate_values,
    js_distance,
    order_dependence,
    ordinal_emd,
    read_model_answers,
    released_emd,
    released_first_digit,
    run_values,
    tension_set,
    write_model_answers,
)
from cmining.core.basics import CorpusError, RunError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
ALIGN = SHARED / "align"
SURVEY = SHARED / "survey"
needs_align = pytest.mark.skipif(not ALIGN.is_dir(), reason="needs ../shared/data/align")
needs_survey = pytest.mark.skipif(
    not SURVEY.is_dir(), reason="needs ../shared/data/survey"
)

shares = st.integers(2, 11).flatmap(
    lambda n: st.lists(
        st.lists(st.integers(0, 20), min_size=n, max_size=n).filter(any),
        min_size=2,
        max_size=2,
    )
)


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((ALIGN / "expected.json").read_text(encoding="utf-8"))["wvs"]


# ------------------------------------------------------------- distances


@given(shares)
def test_distances_are_those_of_scipy(pair):
    p, q = (np.array(values) / sum(values) for values in pair)
    n = len(p)
    assert js_distance(p, q, 2) == pytest.approx(jensenshannon(p, q, 2), abs=1e-7)
    right = wasserstein_distance(range(n), range(n), p, q) / (n - 1)
    assert ordinal_emd(p, q) == pytest.approx(right)
    assert released_emd(p, q) == pytest.approx(wasserstein_distance(p, q) / (n - 1))
    assert 0 <= divergence(p, q) <= 1 + 1e-12
    assert divergence(p, q) == pytest.approx(divergence(q, p))


def test_first_defect_probabilities_as_samples():
    first, last = [1, 0, 0, 0], [0, 0, 0, 1]
    assert released_emd(first, last) == 0
    assert ordinal_emd(first, last) == 1
    mirror = [0.7, 0.2, 0.1, 0.0]
    assert released_emd(mirror, mirror[::-1]) == pytest.approx(0)
    assert ordinal_emd(mirror, mirror[::-1]) == pytest.approx(0.7333, abs=1e-4)


def test_second_defect_the_first_digit_of_ten():
    people = np.array([0.0, 0.0, 0.0, 0.0, 0.02, 0.03, 0.08, 0.12, 0.12, 0.63])
    scored = released_first_digit(people)
    assert scored.sum() == pytest.approx(1)
    assert scored.argmax() + 1 == 1
    assert people.argmax() + 1 == 10
    assert ordinal_emd(people, scored) == pytest.approx(0.63)
    # asked by letters, each with its whole probability, option 10 keeps what it has
    question = SurveyQuestion(
        "T",
        {"en": "How much?"},
        {"en": tuple(map(str, range(1, 11)))},
        tuple(range(1, 11)),
    )

    def like_people(pairs):
        for prompt, labels in pairs:
            shown = dict(
                line.split(". ") for line in prompt.splitlines() if ". " in line[:4]
            )
            yield np.log(
                [people[int(shown[label.strip()]) - 1] + 1e-12 for label in labels]
            )

    answers = ask_survey(
        {"T": question}, lambda pairs: list(like_people(pairs)), orders=5
    )
    assert answers["T"].mean(0) == pytest.approx(people, abs=1e-6)
    assert order_dependence(answers).loc[0, "js"] < 1e-3


@needs_align
def test_worked_distances(expected):
    for case in expected["worked"]:
        p, q = case["p"], case["q"]
        assert round(ordinal_emd(p, q), 4) == pytest.approx(case["right"], abs=1e-4)
        assert round(released_emd(p, q), 4) == pytest.approx(case["released"], abs=1e-4)
        assert round(js_distance(p, q, 2), 4) == pytest.approx(case["js_base2"], abs=1e-4)


@needs_align
def test_both_distances_between_two_countries(expected):
    rows = json_lines(ALIGN / "wvs_us_cn.jsonl")
    assert len(rows) == expected["questions"]
    for row in rows:
        wanted = row["us_cn"]
        # the shares in the rows are rounded to 4 digits, the distances were computed before
        us, cn = row["USA"], row["CHN"]
        assert ordinal_emd(us, cn) == pytest.approx(wanted["emd_right"], abs=2e-4)
        assert released_emd(us, cn) == pytest.approx(wanted["emd_released"], abs=2e-4)
        assert js_distance(us, cn, 2) == pytest.approx(wanted["js_base2"], abs=3e-4)
        assert divergence(us, cn) == pytest.approx(wanted["combo_right"], abs=3e-4)
    by_divergence = sorted(rows, key=lambda row: -divergence(row["USA"], row["CHN"]))
    assert [row["question_id"] for row in by_divergence[:10]] == expected[
        "mean_us_cn"
    ].get("top10_right", expected["top10_right"])


@needs_align
def test_ten_options(expected):
    rows = json_lines(ALIGN / "wvs_ten_options.jsonl")
    emds = []
    for row in rows:
        scored = released_first_digit(row["answers"])
        assert scored == pytest.approx(row["scored"], abs=2e-4), row["question_id"]
        emds.append(ordinal_emd(row["answers"], scored))
        assert emds[-1] == pytest.approx(row["emd_to_itself"], abs=2e-4)
    assert np.mean(emds) == pytest.approx(
        expected["ten_or_more"]["mean_emd_to_itself"], abs=1e-4
    )
    changed = sum(np.argmax(row["answers"]) != np.argmax(row["scored"]) for row in rows)
    assert changed == expected["ten_or_more"]["argmax_changed"]


@needs_align
def test_people_of_one_country_taken_for_a_model(expected):
    "How many questions Egypt's people are nearer to China on, by the right distance."
    rows = [row for row in json_lines(ALIGN / "wvs_us_cn.jsonl")]
    for country in ("JPN", "EGY"):
        wanted = expected[f"stand_in_{country}"]
        some = [row for row in rows if country in row["stand_in"]]
        questions = {
            row["question_id"]: SurveyQuestion(
                row["question_id"],
                {"en": "?"},
                {"en": tuple(map(str, range(row["n"])))},
                tuple(range(row["n"])),
                {"USA": row["USA"], "CHN": row["CHN"]},
            )
            for row in some
        }
        answers = {
            row["question_id"]: np.array(row["stand_in"][country]["answers"])
            for row in some
        }
        nearer = count_nearer(questions, answers, "USA", "CHN", k=100)
        assert nearer["of"] == wanted["questions"]
        assert nearer["count"] == wanted["closer_to_CHN_right"]
        assert nearer["lo"] < nearer["share"] < nearer["hi"]


# ---------------------------------------------------------- survey files


@needs_survey
def test_survey_files():
    names = [
        "lilyflower_wvs7_clean.jsonl",
        "culturepark_aggregates.jsonl",
        "wvs7_questions.jsonl",
    ]
    survey = read_survey([SURVEY / name for name in names])
    assert len(survey.questions) > 200
    for question in survey.questions.values():
        assert list(question.codes) == sorted(question.codes)
        assert min(question.codes) >= 0
        for options in question.options.values():
            assert len(options) == len(question.codes)
        for people in question.people.values():
            assert sum(people) == pytest.approx(1)
    assert {"USA", "CHN", "EGY", "DEU"} <= set(survey.record["countries"])
    # four codes and three options: no telling which is which
    only = read_survey([SURVEY / names[0]])
    assert only.record["left_out"] == {"other options than codes": 4}
    democracy = survey.questions["Q250"]
    assert democracy.options["en"][-1] == "Absolutely important"
    egypt = np.array(democracy.people["EGY"])
    assert egypt @ np.arange(1, 11) == pytest.approx(9.1323, abs=1e-3)


ROW = {
    "question_id": "R1",
    "text": {"en": "How much do you like rain?"},
    "options": {"en": ["1. Much", "2. Little"]},
    "codes": [1, 2],
    "distributions": {"IRL": [0.3, 0.7]},
}
BROKEN = {
    "no JSON": ('{"question_id":', "line 1: no survey question"),
    "no object": ("[1]", "no question_id"),
    "no id": (json.dumps({"text": "x"}), "no question_id"),
    "no options": (json.dumps(ROW | {"options": {}}), "options are missing"),
    "a negative share": (
        json.dumps(ROW | {"distributions": {"IRL": [1.2, -0.2]}}),
        "IRL: the share",
    ),
    "a share that is text": (
        json.dumps(ROW | {"distributions": {"IRL": ["a", "b"]}}),
        "no number",
    ),
    "a share that is no number": (
        '{"question_id": "R", "text": "x", "options": {"1": "a", "2": "b"}, "distributions": {"IRL": [NaN, 1]}}',
        "no number",
    ),
    "too many shares": (
        json.dumps(ROW | {"distributions": {"IRL": [0.2, 0.3, 0.5]}}),
        "3 shares for 2",
    ),
    "nobody": (json.dumps(ROW | {"distributions": {"IRL": [0, 0]}}), "nobody chose"),
    "a code twice": (json.dumps(ROW | {"codes": [1, 1]}), "a code is there twice"),
    "an unknown code": (
        json.dumps(ROW | {"distributions": {"IRL": {"7": 1}}}),
        "code 7 is none",
    ),
    "a code that is a word": (
        json.dumps(ROW | {"codes": ["x", "y"]}),
        "no survey question",
    ),
    "empty": ("", "the file is empty"),
    "useless": (json.dumps(ROW | {"text": {}}), "no question is in it"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_survey_files(tmp_path, kind):
    text, message = BROKEN[kind]
    path = tmp_path / "survey.jsonl"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read_survey([path])


def test_do_not_know_is_removed_and_codes_are_numbers(tmp_path):
    codes = {str(code): f"option {code}" for code in [10, 1, 2, 3, 4, 5, 6, 7, 8, 9]}
    row = {
        "question_id": "T",
        "text": "How much?",
        "options": codes | {"-1": "Don't know"},
        "distributions": {"IRL": {"10": 0.4, "2": 0.4, "-1": 0.2}},
    }
    path = tmp_path / "survey.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    question = read_survey([path]).questions["T"]
    assert question.codes == tuple(range(1, 11))
    assert question.people["IRL"] == (0, 0.5, 0, 0, 0, 0, 0, 0, 0, 0.5)
    assert question.options["en"][9] == "option 10"


def test_options_that_are_no_scale_have_no_distance_of_positions(tmp_path):
    row = ROW | {
        "options": {"en": ["1. Agree", "2. Disagree", "3. Neither"]},
        "codes": [1, 2, 3],
        "distributions": {"IRL": [0.3, 0.3, 0.4], "ESP": [0.4, 0.3, 0.3]},
    }
    path = tmp_path / "survey.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    survey = read_survey([path])
    assert "R1" in survey.record["not_ordered"]
    distances = country_distances(survey.questions, {"R1": np.array([1, 0, 0])})
    assert distances["emd"].isna().all()
    assert distances["js"].notna().all()
    with pytest.raises(RunError, match="no question has answers of both"):
        tension_set(survey.questions, "IRL", "ESP")


# -------------------------------------------------------------- asking


@given(st.integers(2, 11), st.integers(1, 12))
def test_orders_are_permutations(n, k):
    orders = option_orders(n, k, "seed")
    assert len(set(orders)) == len(orders) <= k
    assert all(sorted(order) == list(range(n)) for order in orders)


def test_a_prompt_shows_options_in_its_order():
    question = SurveyQuestion("R", {"en": "Rain?"}, {"en": ("Much", "Little")}, (1, 2))
    letters = survey_prompt(question, order=[1, 0])
    assert "A. Little\nB. Much" in letters.text
    numbers = survey_prompt(question, labels="numbers")
    assert "1. Much\n2. Little" in numbers.text
    with pytest.raises(KeyError):
        survey_prompt(question, "zh")


@pytest.mark.parametrize("scores", [[np.log([0.5, 0.5])], [np.zeros(3)] * 2, []])
def test_scores_that_do_not_fit(scores):
    question = SurveyQuestion("R", {"en": "Rain?"}, {"en": ("Much", "Little")}, (1, 2))
    with pytest.raises(RunError, match="scores"):
        ask_survey({"R": question}, lambda pairs: scores, orders=2)


# ----------------------------------------------------- the whole evaluation


@pytest.fixture
def survey_file(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        ROW
        | {
            "question_id": f"R{n}",
            "options": {"en": ["1. a", "2. b", "3. c", "4. d"]},
            "codes": [1, 2, 3, 4],
            "distributions": {
                c: rng.dirichlet([1] * 4).tolist() for c in ("IRL", "ESP", "NOR")
            },
        }
        for n in range(30)
    ]
    path = tmp_path / "survey.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_model_that_moves_is_seen_to_move(survey_file, tmp_path):
    survey = read_survey([survey_file])
    irish = {id: np.array(q.people["IRL"]) for id, q in survey.questions.items()}
    mixed = {
        id: (2 * np.array(q.people["IRL"]) + np.array(q.people["ESP"])) / 3
        for id, q in survey.questions.items()
    }
    moved = count_moved(survey.questions, irish, mixed, "IRL", "ESP", k=20)
    assert (moved["count"], moved["of"]) == (20, 20)
    assert moved["p"] < 1e-4
    for name, answers in [("base", irish), ("tuned", mixed)]:
        write_model_answers(tmp_path / f"{name}.jsonl", answers)
    models = {name: tmp_path / f"{name}.jsonl" for name in ("base", "tuned")}
    results = run_values(
        tmp_path / "out", [survey_file], models, ["IRL", "ESP", "NOR"], 20, 100
    )
    assert json.loads((tmp_path / "out" / "results.json").read_text("utf-8")) == results
    assert len(results["moved"]) == 2
    assert results["tension"][0]["nearer_other"]["base"]["count"] == 0
    with pytest.raises(RunError, match="no answers of FRA; it has ESP, IRL, NOR"):
        evaluate_values(survey, {"base": irish}, ["FRA"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": "R1", "shares": [0.5, "x"]}', "no answer of a model"),
        ('{"question_id": "R1", "shares": []}', "no answer of a model"),
        ('{"question_id": "R1", "shares": [NaN, 1]}', "no distribution"),
        ('{"shares": [1, 0]}', "question_id"),
        ('{"question_id": [], "shares": [1, 0]}', "question_id is no text"),
        ('{"question_id": "R1", "shares": [[[1, 0]]]}', "no lists"),
        (
            '{"question_id": "R1", "shares": [1, 0]}\n' * 2,
            "line 2: question R1 is there twice",
        ),
    ],
)
def test_broken_answers(tmp_path, text, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read_model_answers(path)


def test_an_answer_with_other_options(survey_file):
    survey = read_survey([survey_file])
    with pytest.raises(RunError, match="has 4 options, the answer 2"):
        country_distances(survey.questions, {"R1": np.array([0.5, 0.5])})


def test_infinite_divergences_do_not_spoil_means(survey_file):
    survey = read_survey([survey_file])
    answers = {id: np.array([1.0, 0, 0, 0]) for id in survey.questions}
    table = country_distances(survey.questions, answers, ["IRL"])
    assert math.isinf(table["kl_people_model"].iloc[0])
    _, results = evaluate_values(survey, {"a": answers}, ["IRL", "ESP"], n_boot=50)
    json.dumps(results, allow_nan=False)
