"""Learning from rankings, models that answer by themselves, and the experiment as a whole.

A random model of two layers stands in for a language model everywhere.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("trl", reason="training needs pip install 'cmining[train]'")

import torch

from cmining.align import learn as module
from cmining.align.bridge import cue_divergence, list_similarity
from cmining.align.experiment import AlignSettings, align_experiment, experiment_text
from cmining.align.items import WordSettings, make_word_items, ranking_answer
from cmining.align.learn import (
    ALIGN_SFT,
    LearnParams,
    export_ppo,
    learn,
    openrlhf_reward,
    ranked_words,
    ranking_pairs,
    read_rankings,
    spearman_reward,
)
from cmining.align.lexical import example_turns, weights_answers
from cmining.align.reward import score_ranking
from cmining.align.survey import SurveyQuestion, survey_prompt
from cmining.align.values import ask_survey, option_shares, weights_scores
from cmining.cli import main
from cmining.core.basics import RunError
from cmining.models.prompts import Endpoint, Reply
from cmining.train.tune import load_model

EAT = Path(__file__).parent.parent / "data" / "norms" / "eat.tsv"
FAST = LearnParams(rate=0.01, batch=4, device_batch=2, answers=2, answer_tokens=8)

words = st.lists(
    st.text("abcxyz: 1.Rank", min_size=1, max_size=12).map(str.strip).filter(bool),
    min_size=2,
    max_size=10,
    unique=True,
)


@pytest.fixture(scope="module")
def long_llama(tiny_llama, tmp_path_factory) -> Path:
    "The tiny model with a window into which a ranking fits."
    folder = tmp_path_factory.mktemp("long") / "llama"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 4096
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def rankings(tmp_path_factory) -> Path:
    "A dataset of eight rankings."
    out = tmp_path_factory.mktemp("rankings")
    table = EAT.read_text(encoding="utf-8").splitlines()
    cues = list(dict.fromkeys(line.split("\t")[0] for line in table[1:]))[:12]
    few = [line for line in table if line.split("\t")[0] in ("cue", *cues)]
    (out / "few.tsv").write_text("\n".join(few), encoding="utf-8")
    of_words = WordSettings(tasks=("word_ranking",), budget=12)
    make_word_items(out / "few.tsv", out / "words", of_words, jobs=1)
    return out / "words" / "train"


@given(words, st.sampled_from(["en", "de", "zh", "nl"]))
def test_a_ranking_is_read_back(gold, lang):
    assert ranked_words(ranking_answer(gold, lang), lang) == gold


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4), words)
def test_rewards_never_throw(texts, gold):
    rewards = spearman_reward(texts, [gold] * len(texts))
    assert rewards == spearman_reward(texts, [gold] * len(texts))
    assert all(-1 <= reward <= 1 for reward in rewards)
    label = json.dumps(gold)
    found = openrlhf_reward(texts, [""] * len(texts), [label] * len(texts))
    assert all(-1 <= reward <= 1 for reward in found["rewards"])


def test_pairs_differ_in_nothing_but_the_order(rankings):
    tasks, _ = read_rankings(rankings)
    pairs = ranking_pairs(tasks, seed=1)
    for task, pair in zip(tasks, pairs):
        assert score_ranking(pair["chosen"], task.gold).rho == 1
        assert score_ranking(pair["rejected"], task.gold).rho <= 0.5
        assert sorted(pair["chosen"]) == sorted(pair["rejected"])
    assert pairs == ranking_pairs(tasks, seed=1) != ranking_pairs(tasks, seed=2)


def weights_of(folder: Path) -> bytes:
    return (folder / "seed-0/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["grpo", "dpo"])
def test_two_steps(method, rankings, long_llama, tmp_path, monkeypatch):
    "What was stopped between two steps ends with the same bytes as what was not."
    n = len(read_rankings(rankings)[0])
    rows = n * (FAST.answers if method == "grpo" else 1)
    params = replace(FAST, epochs=2 * FAST.batch / rows)
    record = learn(rankings, long_llama, tmp_path / "a", method, params)
    assert record["steps"] == 2
    own = json.loads((tmp_path / "a/seed-0/run.json").read_text())
    assert [step for step, _ in own["losses"]] == [1, 2]
    assert (
        set(own["measures"])
        >= {
            "grpo": {"reward", "whole_rankings"},
            "dpo": {"accuracy", "margin"},
        }[method]
    )
    load_model(long_llama, tmp_path / "a/seed-0")

    def stop_after_one(log, line):
        if "step 2 of 2" in line:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "SAY_SECONDS", 0)
        patch.setattr(module.RunLog, "say", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            learn(rankings, long_llama, tmp_path / "b", method, params, save_seconds=0)
    assert (tmp_path / "b/.checkpoints-0/checkpoint-1").is_dir()
    learn(rankings, long_llama, tmp_path / "b", method, params)
    assert weights_of(tmp_path / "b") == weights_of(tmp_path / "a")
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"seed-0", "run.json"}


def test_begins_with_an_adapter(rankings, long_llama, tmp_path):
    "One adapter comes out, which is the first one when nothing is learnt."
    params = replace(FAST, epochs=0.1)
    learn(rankings, long_llama, tmp_path / "a", "dpo", params)
    still = replace(params, rate=0.0)
    again = tmp_path / "b"
    learn(rankings, long_llama, again, "dpo", still, adapter=tmp_path / "a")
    assert weights_of(again) == weights_of(tmp_path / "a")
    with pytest.raises(RunError, match="adapters of another training"):
        learn(rankings, long_llama, again, "dpo", still)
    with pytest.raises(RunError, match="has none in seed-1"):
        learn(rankings, long_llama, again, "dpo", adapter=tmp_path / "a", seeds=[1])


def test_the_window_is_respected(rankings, tiny_llama, tmp_path):
    "512 tokens, each a byte, are too few for any ranking."
    with pytest.raises(RunError, match="no ranking fits into the 512 tokens"):
        learn(rankings, tiny_llama, tmp_path / "a", "dpo")


def test_openrlhf_gets_what_it_calls(rankings, tmp_path):
    record = export_ppo(rankings, tmp_path / "ppo")
    lines = (tmp_path / "ppo/prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == record["prompts"]
    scope: dict = {}
    exec((tmp_path / "ppo/reward.py").read_text(encoding="utf-8"), scope)
    prompts = [row["input"] for row in rows]
    queries = [
        row["input"] + ranking_answer(json.loads(row["label"])) + "<|im_end|>"
        for row in rows
    ]
    found = scope["reward_func"](queries, prompts, [row["label"] for row in rows])
    assert found["rewards"].tolist() == [1.0] * len(rows)
    assert found["scores"].tolist() == [1.0] * len(rows)


def test_the_settings_are_the_papers():
    assert (ALIGN_SFT.rank, ALIGN_SFT.alpha, ALIGN_SFT.loraplus) == (64, 256, 16)
    assert (ALIGN_SFT.rate, ALIGN_SFT.warmup, ALIGN_SFT.epochs) == (1e-5, 0.1, 1.5)


QUESTIONS = {
    f"Q{n}": SurveyQuestion(
        f"Q{n}",
        {"en": f"How good is custom {n}?"},
        {"en": tuple(f"level {level}" for level in range(options))},
        tuple(range(1, options + 1)),
    )
    for n, options in enumerate([2, 3, 4, 11])
}


def survey_file(folder: Path) -> Path:
    "The questions as a file, with two countries that disagree."
    rows = []
    for question in QUESTIONS.values():
        n = len(question.codes)
        first = [n + 0.0] + [1.0] * (n - 1)
        shares = {"USA": first, "CHN": first[::-1]}
        options = dict(zip(map(str, question.codes), question.options["en"]))
        row = {"question_id": question.id, "text": question.text["en"]}
        rows.append(row | {"options": options, "distributions": shares})
    path = folder / "survey.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_lists_go_on_where_they_were(long_llama, tmp_path):
    "Every prompt has its text, equal ones the same; what is in the journal is not asked."
    model, tokenizer = load_model(long_llama)
    prompts = ["one", "two and more", "one"]
    texts = weights_answers(model, tokenizer, tmp_path, max_tokens=6)(prompts)
    assert len(texts) == 3
    assert texts[0] == texts[2] != texts[1]
    (journal,) = tmp_path.glob("lists-*.jsonl")
    cannot_write = SimpleNamespace(config=model.config)
    again = weights_answers(cannot_write, tokenizer, tmp_path, max_tokens=6)(prompts)
    assert again == texts
    journal.write_bytes(journal.read_bytes()[:-9])  # a line that a kill tore
    assert weights_answers(model, tokenizer, tmp_path, max_tokens=6)(prompts) == texts
    before = example_turns({"sea": ["ship", "blue"]})
    other = weights_answers(model, tokenizer, tmp_path, 6, before)(prompts)
    assert other != texts
    assert len(list(tmp_path.glob("lists-*.jsonl"))) == 2


def label_probability(model, tokenizer, prompt: str, label: str) -> float:
    "The log-probability of a label after a prompt, token by token."
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    read = tokenizer.encode(asked, add_special_tokens=False)
    said = tokenizer.encode(asked + label, add_special_tokens=False)[len(read) :]
    total = 0.0
    for token in said:
        with torch.inference_mode():
            logits = model(torch.tensor([read])).logits[0, -1].float()
        total += float(logits.log_softmax(-1)[token])
        read = [*read, token]
    return total


@pytest.mark.parametrize("labels", ["letters", "numbers"])
def test_labels_are_scored_whole(labels, long_llama, tmp_path):
    "Option 11 is two tokens here, and is not taken for option 1."
    model, tokenizer = load_model(long_llama)
    model = model.float()
    score = weights_scores(model, tokenizer, tmp_path)
    prompt = survey_prompt(QUESTIONS["Q3"], labels=labels)
    (values,) = score([(prompt.text, [f" {label}" for label in prompt.labels])])
    right = [label_probability(model, tokenizer, prompt.text, x) for x in prompt.labels]
    np.testing.assert_allclose(option_shares(values), option_shares(right), atol=1e-4)
    answers = ask_survey(QUESTIONS, score, orders=3, labels=labels)
    assert [shares.shape for shares in answers.values()] == [
        (2, 2),
        (3, 3),
        (3, 4),
        (3, 11),
    ]
    for shares in answers.values():
        np.testing.assert_allclose(shares.sum(1), 1)


def test_labels_of_a_server(monkeypatch, tmp_path):
    "An absent label is at most as likely as the least that is told; unknown orders go."
    from cmining.align import values

    def reply(requests, *_, **__):
        for number, request in enumerate(requests):
            told = {"A": -0.1, "B": -2.0, "I": -4.0} if number % 2 == 0 else {"I": 0.0}
            yield Reply(request.key, "A", None, "m", logprobs=told)

    monkeypatch.setattr(values, "ask", reply)
    score = values.endpoint_scores(Endpoint("m", "http://x/v1"), tmp_path / "r.jsonl")
    answers = ask_survey({"Q1": QUESTIONS["Q1"]}, score, orders=2)
    weights = np.exp([-0.1, -2.0, -4.0])
    np.testing.assert_allclose(answers["Q1"], [weights / weights.sum()])

    def silent(requests, *_, **__):
        return [Reply(request.key, "A", None, "m") for request in requests]

    monkeypatch.setattr(values, "ask", silent)
    with pytest.raises(RunError, match="tells no log-probabilities"):
        ask_survey(QUESTIONS, score)


SFT = replace(ALIGN_SFT, rate=0.01, batch=4, rank=4, epochs=1.0, device_batch=4)


@pytest.fixture(scope="module")
def experiment(long_llama, rankings, tmp_path_factory) -> tuple[Path, dict]:
    "All of it with two seeds, which takes some steps of the tiny model."
    out = tmp_path_factory.mktemp("experiment")
    norms = rankings.parent.parent / "few.tsv"
    asked = AlignSettings(seeds=(0, 1), cues=2, length=5, max_tokens=24, orders=2)
    arguments = (norms, long_llama, out / "run", asked, SFT, replace(FAST, epochs=0.5))
    results = align_experiment(*arguments, surveys=[survey_file(out)])
    again = align_experiment(*arguments, surveys=[survey_file(out)])
    assert again == results  # and nothing was trained or asked anew
    return out / "run", results


def test_the_whole_experiment(experiment):
    out, results = experiment
    assert json.loads((out / "results.json").read_text())["cues"] == results["cues"]
    assert list(results["arms"]) == ["base", "examples", "sft", "preference"]
    assert list(results["changes"]) == [
        "examples - base",
        "sft - base",
        "preference - base",
        "sft - examples",
        "preference - sft",
    ]
    for arm in ("sft", "preference"):
        assert len(results["arms"][arm]["P@5 by seed"]) == 2
        assert set(results["survey"]["moved_by_seed"][arm]) == {"0", "1"}
    arms = ("base", "sft", "preference")
    assert results["survey"]["questions"] == dict.fromkeys(arms, 4)
    assert set(results["survey"]["leanings"]) == set(arms)
    assert {path.name for path in (out / "lists").iterdir()} == {
        "base.jsonl",
        "examples.jsonl",
        *(f"{arm}-{seed}.jsonl" for arm in ("sft", "preference") for seed in (0, 1)),
    }
    assert "sft - base: P@5" in experiment_text(results)


def test_held_out_cues_are_held_out(experiment):
    "No cue that is asked is in an item that was learnt, in lists or in rankings."
    out, results = experiment
    asked = {json.loads(line)["cue"] for line in (out / "lists/base.jsonl").open()}
    assert len(asked) == results["cues"]["asked"]
    assert not asked & set(results["cues"]["examples"])
    for folder in ("words/train", "rankings/train"):
        for path in (out / folder).glob("items-*.jsonl"):
            learnt = {json.loads(line)["key"] for line in path.open()}
            assert learnt and not asked & learnt


def test_commands_ask_models_with_weights(experiment, long_llama, tmp_path, capsys):
    run, _ = experiment
    out = tmp_path / "lexical"
    line = ["align", "lexical", str(run / "words"), "--model", str(long_llama)]
    line += ["--adapter", str(run / "sft"), "--max-tokens", "16", "--out", str(out)]
    code = main(line)
    told = capsys.readouterr()
    # a random model writes no list; then that is said, and nothing else
    assert code == 0 or "none is a list" in told.err
    assert {path.name for path in out.glob("answers-*.jsonl")} == {
        f"answers-{name}.jsonl" for name in ("base", "seed-0", "seed-1")
    }
    values = tmp_path / "values"
    line = ["align", "values", str(survey_file(tmp_path)), "--model", str(long_llama)]
    line += ["--adapter", str(run / "sft/seed-1"), "--orders", "2", "--out", str(values)]
    assert main([*line, "--countries", "USA,CHN"]) == 0
    told = capsys.readouterr().out
    assert "base: 4 questions in 8 orders" in told
    assert "from base to seed-1" in told
    record = json.loads((values / "run.json").read_text())
    assert record["asked"]["by"] == "weights"
    assert record["asked"]["orders"] == 2


def test_train_takes_the_preset(monkeypatch):
    seen = {}

    def tune(dataset, model, out, params, **_):
        seen["params"] = params
        loss = {"mean": 1.0, "sd": None}
        return {"items": 1, "left_out": {}, "seeds": [0], "final_loss": loss}

    monkeypatch.setattr("cmining.commands.train.tune", tune)
    line = ["train", "items", "--model", "m", "--out", "o", "--preset", "align"]
    assert main(line) == 0
    assert seen["params"] == ALIGN_SFT
    assert main([*line, "--rank", "8"]) == 0
    assert seen["params"] == replace(ALIGN_SFT, rank=8)


@given(
    st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=5)
)
def test_similarity_of_lists(rows):
    "Symmetrical, at most 1, and 1 for a list with itself."
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (lengths > 1e-3).all():
        return
    a = np.array(rows) / lengths
    b = np.eye(3)
    assert list_similarity(a, b) == pytest.approx(list_similarity(b, a))
    assert list_similarity(a, b) <= 1 + 1e-9
    assert list_similarity(a, a) == pytest.approx(1)


def test_divergence_is_seen_against_chance():
    "A concept that both languages see alike is below one that they see as any two."
    vectors = {word: np.eye(8)[i] for i, word in enumerate("abcdefgh")}

    def encode(words):
        return np.array([vectors[word] for word in words]).reshape(-1, 8)

    rows = [("same", "x", "ab"), ("same", "y", "ab"), ("other", "x", "cd")]
    rows += [("other", "y", "ef"), ("none", "x", ""), ("none", "y", "g")]
    lists = pd.DataFrame(rows, columns=["concept", "lang", "words"])
    lists = lists.assign(cue=lists["concept"], words=lists["words"].map(list))
    found = cue_divergence(lists, "y", encode).set_index("concept")["divergence"]
    assert found["same"] == pytest.approx(0)
    assert found["other"] == pytest.approx(1)
    assert np.isnan(found["none"])
