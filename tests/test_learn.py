"""Learning from rankings, models that answer by themselves, and the experiment as a whole.

A random model of two layers stands in for a language model everywhere.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("trl", reason="training needs pip install 'cmining[train]'")

from cmining.align import learn as module
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
from cmining.align.reward import score_ranking
from cmining.core.basics import RunError
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
    settings = WordSettings(tasks=("word_ranking",), budget=12)
    make_word_items(out / "few.tsv", out / "words", settings, jobs=1)
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
    assert set(own["measures"]) >= {
        "grpo": {"reward", "whole_rankings"},
        "dpo": {"accuracy", "margin"},
    }[method]
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
