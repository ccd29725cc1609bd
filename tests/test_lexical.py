"""Lexical evaluation and reward: the released numbers where they can be had, and what models write."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import cmining
from cmining.align.lexical import (
    KS,
    compare_scores,
    evaluate_lexical,
    frequency_recall,
    holm,
    macro_scores,
    precision_at,
    rank_correlation,
    read_answers,
    read_ratings,
    released_parse,
    released_scores,
    score_answers,
)
from cmining.align.reward import (
    parse_list,
    read_ranking,
    released_reward,
    score_ranking,
    spearman,
)
from cmining.core.basics import CorpusError

ALIGN = Path(__file__).parent.parent.parent / "shared" / "data" / "align"
FILES = [
    "llama_zh_ppo",
    "llama_zh_ppo_simple",
    "qwen3-32b_zh_base",
    "qwen3-32b_zh_base_simple",
    "qwen_zh_base",
    "qwen_zh_base_simple",
    "qwen_zh_ppo",
    "qwen_zh_ppo_simple",
    "qwen_zh_sft",
    "qwen_zh_sft_simple",
]
needs_shared = pytest.mark.skipif(not ALIGN.is_dir(), reason="needs ../shared/data/align")


def rows_of(name: str) -> list[dict]:
    with gzip.open(ALIGN / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def gold_of(row: dict) -> list[str]:
    return [word for word, _ in row["gold"]]


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((ALIGN / "expected.json").read_text(encoding="utf-8"))["files"]


@pytest.fixture(scope="module")
def cases() -> dict:
    return json.loads((ALIGN / "metric_cases.json").read_text(encoding="utf-8"))


def macro(lists: list[list[str]], golds: list[list[str]]) -> dict[str, float]:
    pairs = list(zip(lists, golds))
    means = {
        f"P@{k}": np.mean([precision_at(words, gold, k) for words, gold in pairs])
        for k in KS
    }
    rhos = [rank_correlation(words, gold) for words, gold in pairs]
    return {
        **means,
        "spearman_per_cue_mean": np.nanmean(rhos),
        "n_spearman": np.sum(~np.isnan(rhos)),
    }


def check(measured: dict[str, float], wanted: dict) -> None:
    for name, value in measured.items():
        # four digits: a value half-way between two may have been rounded either way
        assert abs(value - wanted[name]) < 5.0001e-5, name


# ------------------------------------------------------- released outputs


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_macro_scores_of_released_outputs(name, expected):
    rows = rows_of(name)
    golds = [gold_of(row) for row in rows]
    lists = [row["output"] for row in rows]
    check(macro(lists, golds), expected[name]["macro"])
    lowered = [[word.lower() for word in gold] for gold in golds]
    measured = macro(lists, lowered)
    del measured["n_spearman"]
    check(measured, expected[name]["macro_gold_lowercased"])


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_scores_as_released(name, expected):
    rows = rows_of(name)
    gold = {row["cue"]: gold_of(row) for row in rows}
    scores = released_scores({row["cue"]: row["output"] for row in rows}, gold)
    wanted = expected[name]["batched_as_released"]
    scores["spearman_pooled_by_batch"] = scores.pop("spearman")
    check(scores, wanted)


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_scores_of_their_second_parser(name, expected):
    rows = [row for row in rows_of(name) if row["parsed"] is not None]
    wanted = expected[name]["parsed_by_their_second_parser"]
    assert len(rows) == wanted["n"]
    check(macro([row["parsed"] for row in rows], [gold_of(row) for row in rows]), wanted)


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_the_released_parser(name):
    for row in rows_of(name):
        assert released_parse(row["raw"]) == row["output"]


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_our_parser_finds_lists(name, expected):
    "On raw text it scores at least what the authors' second parser does, dropped rows as 0."
    rows = rows_of(name)
    ours = np.mean(
        [precision_at(parse_list(row["raw"]), gold_of(row), 5) for row in rows]
    )
    second = expected[name]["parsed_by_their_second_parser"]
    theirs = second["P@5"] * second["n"] / len(rows)
    assert ours > theirs - 0.01, (ours, theirs)


@needs_shared
def test_much_of_the_gain_is_format():
    "The same 34 cues before and after fine-tuning, by two parsers."
    scores = {}
    for name in ("qwen_zh_base", "qwen_zh_sft"):
        rows = rows_of(name)
        for parse in (released_parse, parse_list):
            hits = [precision_at(parse(row["raw"]), gold_of(row), 5) for row in rows]
            scores[name, parse] = np.mean(hits)
    before, after = "qwen_zh_base", "qwen_zh_sft"
    assert scores[after, released_parse] / scores[before, released_parse] > 2.4
    assert scores[after, parse_list] / scores[before, parse_list] < 1.4


# ------------------------------------------------------------ metric cases


def ordered(gold: dict[str, int]) -> list[str]:
    return sorted(gold, key=lambda word: (-gold[word], word))


def released_row(scores: dict[str, float]) -> dict[str, float]:
    return {f"prec_at_{k}": scores[f"P@{k}"] for k in KS}


@needs_shared
def test_invented_answers(cases):
    gold = {cue: ordered(counts) for cue, counts in cases["gold"].items()}
    assert len(cases["lexical"]) == 20
    for case in cases["lexical"]:
        words = released_parse(case["response"])
        assert words == case["words"], case["note"]
        scores = released_scores({case["cue"]: words}, gold)
        wanted = dict(case["released"])
        rho = wanted.pop("spearman")
        assert released_row(scores) == pytest.approx(wanted), case["note"]
        assert scores["spearman"] == pytest.approx(rho or 0), case["note"]
        assert math.isnan(rank_correlation(words, gold[case["cue"]])) == (rho is None)


@needs_shared
def test_invented_batches(cases):
    gold = {cue: ordered(counts) for cue, counts in cases["gold"].items()}
    case = cases["lexical_batch"]
    pairs = zip(case["cues"], case["responses"])
    scores = released_scores({cue: released_parse(text) for cue, text in pairs}, gold)
    wanted = dict(case["released"])
    assert scores["spearman"] == pytest.approx(wanted.pop("spearman"))
    assert released_row(scores) == pytest.approx(wanted)


@needs_shared
def test_a_cue_with_a_capital(cases):
    case = cases["capital_cue"]
    gold = {cue: ordered(counts) for cue, counts in case["gold"].items()}
    words = {case["cue"]: released_parse(case["response"])}
    assert not any(released_scores(words, gold).values())
    # the right value: both sides are folded
    right = score_answers({case["cue"]: case["response"]}, case["gold"])
    assert right["P@5"].item() == 2 / 5


@needs_shared
def test_invented_frequency_masses(cases):
    for case in cases["frequency_mass"]:
        counts = cases["gold"][case["cue"]]
        gold = {word: counts[word] for word in ordered(counts)}
        mass = frequency_recall(released_parse(case["response"]), gold, case["top_k"])
        assert mass == pytest.approx(case["released"])


@needs_shared
def test_invented_rewards(cases):
    gold = cases["reward_gold"]
    assert len(cases["reward"]) == 19
    for case in cases["reward"]:
        reward = released_reward(case["response"], gold)
        assert reward == pytest.approx(case["released"], abs=1e-6), case["note"]


@needs_shared
def test_the_right_reward_of_the_same_answers(cases):
    "Whole rankings get their correlation whatever their punctuation; parts of one get none."
    gold = cases["reward_gold"]
    scored = {
        case["note"]: score_ranking(case["response"], gold) for case in cases["reward"]
    }
    assert scored["perfect"].rho == 1
    assert scored["reversed"].rho == pytest.approx(-1)
    assert scored["only the best word named"].problem == "leaves words out"
    assert scored["only the worst word named"].problem == "leaves words out"
    assert scored["five best in order, rest missing"].problem == "leaves words out"
    assert (
        scored["a word given twice: eleven ranks against ten"].problem == "repeats a word"
    )
    assert scored["comma list after the heading"].rho == 1
    assert scored["numbered with dots, not colons"].rho == 1
    assert scored["no heading, but numbered"].rho == 1
    assert scored["empty"].problem == "no ranking"


# ------------------------------------------------------------ what models write

TEN = ["boat", "sea", "ship", "water", "salt", "Dover", "gull", "net", "rope", "tide"]
WRITTEN = {
    "colons": "\n".join(f"Rank {n}: {word}" for n, word in enumerate(TEN, 1)),
    "dots": "\n".join(f"{n}. {word}" for n, word in enumerate(TEN, 1)),
    "brackets": "\n".join(f"{n}) **{word}**" for n, word in enumerate(TEN, 1)),
    "bold numbers": "\n".join(f"**{n}.** {word}" for n, word in enumerate(TEN, 1)),
    "full width": "\n".join(f"第{n}名：{word}" for n, word in enumerate(TEN, 1)),
    "chinese stops": "\n".join(f"{n}、{word}。" for n, word in enumerate(TEN, 1)),
    "bullets": "\n".join(f"- {word}" for word in TEN),
    "glosses": "\n".join(
        f"{n}. {word} - since it floats" for n, word in enumerate(TEN, 1)
    ),
    "brackets after": "\n".join(
        f"{n}. {word} (of the sea)" for n, word in enumerate(TEN, 1)
    ),
    "commas": ", ".join(TEN),
    "ideographic commas": "、".join(TEN),
    "full-width commas": "，".join(TEN) + "。",
    "out of order": "\n".join(f"{n}. {w}" for n, w in reversed(list(enumerate(TEN, 1)))),
    "thoughts": "<think>1. tide\n2. rope</think>\n" + ", ".join(TEN),
    "a remark": "\n".join(f"{n}. {w}" for n, w in enumerate(TEN, 1))
    + "\nI hope this helps!",
    "a heading": "First I thought: 1. tide.\nFinal Ranking:\n" + ", ".join(TEN),
    "foreign words": "\n".join(f"{n}. {w}" for n, w in enumerate([*TEN, "кот", "鱼"], 1)),
    "lower case": "\n".join(f"{n}. {w.upper()}" for n, w in enumerate(TEN, 1)),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_rankings_as_models_write_them(kind):
    assert score_ranking(WRITTEN[kind], TEN).rho == pytest.approx(1), kind


BROKEN = {
    None: "no ranking",
    "": "no ranking",
    "I cannot rank these.": "no ranking",
    "<think>1. boat\n2. sea": "no ranking",
    "1. boat\n2. sea": "leaves words out",
    "\n".join(f"{n}. boat" for n in range(1, 11)): "repeats a word",
    WRITTEN["dots"] + "\n11. boat": "repeats a word",
}


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_ranking(text):
    score = score_ranking(text, TEN)
    assert score == (None, BROKEN[text])
    assert score.reward == -1


piece = st.sampled_from(
    [
        *TEN,
        "кот",
        "鱼",
        "",
        " ",
        "*",
        "Final Ranking:",
        "最终排序：",
        "<think>",
        "</think>",
    ]
)
mark = st.sampled_from(
    [
        "1. ",
        "2) ",
        "Rank 3: ",
        "第4名：",
        "- ",
        "• ",
        "9" * 30 + ". ",
        "٣. ",
        "**5.** ",
        "",
    ]
)
line = st.builds(
    lambda m, p, q: f"{m}{p}{q}",
    mark,
    piece,
    st.sampled_from(["", " - why", ": x", "，", " (y)"]),
)
texts = st.text() | st.lists(line).map("\n".join) | st.permutations(TEN).map(", ".join)


@settings(max_examples=300)
@given(text=texts, gold=st.just(TEN) | st.lists(st.text(max_size=6), max_size=12))
def test_no_text_makes_the_reward_throw(text, gold):
    score = score_ranking(text, gold)
    assert score == score_ranking(text, gold)
    assert -1 <= score.reward <= 1
    assert (score.rho is None) == (score.problem is not None)
    assert -1 <= released_reward(text, gold) <= 1
    ranking = read_ranking(text, gold)
    assert len(set(ranking.order)) == len(ranking.order) <= len(gold)
    words = parse_list(text)
    assert all(words) and len(words) == len(set(words))


@given(order=st.permutations(range(10)))
def test_a_whole_ranking_gets_its_correlation(order):
    lines = [f"Rank {n}: {TEN[place]}" for n, place in enumerate(order, 1)]
    text = "\n".join(["Final Ranking:", *lines])
    rho = spearmanr(range(10), order).statistic
    assert score_ranking(text, TEN).rho == pytest.approx(rho)
    assert released_reward(text, [word.lower() for word in TEN]) == pytest.approx(rho)


@pytest.mark.parametrize(
    "text",
    [
        " " * 200_000,
        "1" * 200_000,
        "1. " * 60_000,
        "- " * 90_000,
        "\u3000" * 90_000 + "x",
        "final ranking " * 20_000,
        "a, " * 10_000,
    ],
)
def test_long_texts_take_no_time(text):
    import time

    start = time.perf_counter()
    parse_list(text)
    score_ranking(text, TEN)
    released_reward(text, TEN)
    released_parse(text)
    assert time.perf_counter() - start < 10


@given(
    values=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20
    )
)
def test_spearman_is_that_of_scipy(values):
    a, b = zip(*values)
    ours = spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(spearmanr(a, b).statistic)


# ----------------------------------------------------- our own evaluation

GOLD = {
    "harbour": {"boat": 20, "sea": 12, "Dover": 2, "light  house": 2, "café": 1},
    "lamp": {"light": 30, "bulb": 9},
    "null": {"void": 7},
}


def test_public_names():
    assert cmining.precision_at is precision_at
    assert cmining.rank_correlation is rank_correlation


def test_both_sides_are_folded():
    answers = {"HARBOUR": "DOVER, light house, Café, ＢＯＡＴ", "null": "Void"}
    scores = score_answers(answers, GOLD).set_index("cue")
    assert scores.loc["harbour", "P@5"] == 4 / 5
    assert scores.loc["null", "P@5 reachable"] == 1
    assert scores.loc["lamp", "parsed"] == 0
    assert scores.loc["lamp", "P@5"] == 0
    assert math.isnan(scores.loc["lamp", "spearman"])


def test_words_may_come_as_lists():
    text = score_answers({"harbour": "boat, sea"}, GOLD)
    words = score_answers({"harbour": ["boat", "sea"]}, GOLD)
    pd.testing.assert_frame_equal(text, words)


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=12),
    st.sets(st.sampled_from("abcdefgh")),
    st.integers(1, 20),
)
def test_precision_from_its_definition(generated, gold, k):
    first: list[str] = []
    for word in generated:
        if word not in first:
            first.append(word)
    hits = [word for word in first[:k] if word in gold]
    assert precision_at(generated, gold, k) == len(hits) / k


def test_intervals_hold_the_mean_and_shrink():
    rng = np.random.default_rng(0)
    few = pd.DataFrame({"cue": range(20), "P@5": rng.random(20)})
    many = pd.DataFrame({"cue": range(2000), "P@5": rng.random(2000)})
    first, second = macro_scores(few).iloc[0], macro_scores(many).iloc[0]
    assert first["lo"] < first["value"] < first["hi"]
    assert second["hi"] - second["lo"] < 0.2 * (first["hi"] - first["lo"])
    assert macro_scores(few).equals(macro_scores(few))


def test_paired_comparison():
    before = pd.DataFrame({"cue": range(50), "P@5": np.zeros(50), "P@10": np.zeros(50)})
    after = before.assign(**{"P@5": 0.2}).sample(frac=1, random_state=0)
    table = compare_scores(before, after).set_index("measure")
    assert table.loc["P@5", "lo"] == pytest.approx(0.2)
    assert table.loc["P@5", "p_holm"] == pytest.approx(2 * table.loc["P@5", "p"])
    assert table.loc["P@10", "p"] == 1


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(c >= p for c, p in zip(corrected, p_values))
    assert all(
        c <= min(1, p * len(p_values) + 1e-12) for c, p in zip(corrected, p_values)
    )
    order = np.argsort(p_values)
    assert (np.diff(corrected[order]) >= 0).all()


# ----------------------------------------------------------------- ratings

LISTS = {
    "Word,V.Mean.Sum,A.Mean.Sum,D.Mean.Sum\nsea,7.4,4.1,4.6\n": (7.4, 4.1, 4.6),
    "Word\tBigram\tConc.M\tConc.SD\nsea\t0\t4.79\t0.5\n": (4.79,),
    "Word,Valence_Mean,Arousal_Mean\n海,1.5,2\n": (7.0, 5.0),
    "Word,Mean\n大海,1.2\n": (4.8,),
    "word,concreteness\nSEA,4\n": (4.0,),
}


@pytest.mark.parametrize("text", LISTS)
def test_published_lists_come_to_one_scale(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    assert tuple(read_ratings(path).iloc[0]) == pytest.approx(LISTS[text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Word,Color\na,red\n", "no list of ratings"),
        ("Word,Conc.M\n", "has no words"),
        ("Word,Conc.M\na,7\n", "line 2: concreteness is from 1 to 5, not 7"),
        ("Word,Conc.M\na,high\n", "'high' is no rating"),
        ("Word,Conc.M\na\n", "line 2: 1 fields, not 2"),
        ("", "the file is empty"),
    ],
)
def test_broken_lists_of_ratings(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read_ratings(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cue": "a"', "line 1: it is no JSON"),
        ('{"text": "a"}', "it has no cue"),
        ('{"cue": "a", "words": [1]}', "no text and no list"),
        (
            '{"cue": "a", "text": "b"}\n{"cue": "a", "text": "c"}',
            "line 2: cue 'a' is there twice",
        ),
        ("\n", "the file is empty"),
    ],
)
def test_broken_answers(tmp_path, text, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read_answers(path)


def test_results_are_json(tmp_path):
    table, results = evaluate_lexical(
        GOLD, {"a": {"lamp": "light"}, "b": {"null": "void"}}, n_boot=50
    )
    json.dumps(results, allow_nan=False)
    assert len(table) == 6
