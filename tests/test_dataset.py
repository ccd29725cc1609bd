"""Exported files are taken by those they are made for, and carry nothing that acts.

Their splits share no concept.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from cmining.core.basics import RunError
from cmining.instruct.export import (
    ROWS,
    SPLITS,
    check_export,
    concept_set,
    export_dataset,
    trainable_items,
)

LLAMAFACTORY = os.environ.get("CMINING_LLAMAFACTORY")
HOSTILE = (
    "</script><img src=x onerror=alert(1)> [x](javascript:alert(1))"
    " ![](http://e.org/a.png) ${7*7} {{7*7}} __import__('os') | `a` \u202e"
)


def item(n: int, **changes) -> dict:
    lang = ("de", "ja", "en")[n % 3]
    title = f"custom {n // 6}"
    point = {
        "id": f"{lang} {title}",
        "lang": lang,
        "title": f"{title} {lang}",
        "lead": "more",
    }
    task = [
        {
            "task": "single_choice",
            "options": ["dance", "dish", "feast", f"game {n}"],
            "answer": "ABCD"[n % 4],
        },
        {"task": "true_false", "options": None, "answer": n % 2 == 0},
        {"task": "short_answer", "options": None, "answer": f"It is number {n}."},
    ][n // 3 % 3]
    return {
        "id": f"{n:04}",
        "lang": lang,
        "question": f"What of {title} in {lang}?",
        "explanation": "So says the article." if n % 5 else None,
        "group": n // 60,
        "culture_points": [point],
        "generator": "offline",
        "prompt_version": 1,
        "seed": 0,
        "usd": 0.0,
        "later": "a field that came later",
        **task,
        **changes,
    }


def write(folder: Path, items) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "items-00000.jsonl").write_text(
        "".join(json.dumps(i) + "\n" for i in items), encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "set", map(item, range(300)))


@pytest.fixture(scope="module")
def exported(dataset):
    for format in ROWS:
        export_dataset(dataset, format, validation=0.1, test=0.1)
    return dataset


@pytest.fixture(scope="module")
def chat_model(dataset, tmp_path_factory):
    "A tiny random Qwen2 with a byte-level tokenizer trained on the items, saved to disk."
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("model")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [json.dumps(i, ensure_ascii=False) for i in trainable_items(dataset)[0]],
        500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%"
        " endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


# ---- the consumers


@pytest.mark.parametrize("format", ROWS)
def test_datasets_reads_it(exported, format, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    splits = datasets.load_dataset(str(exported / format), cache_dir=str(tmp_path))
    n_rows = {split: splits[split].num_rows for split in SPLITS}
    assert n_rows == check_export(exported / format, format)
    assert sum(n_rows.values()) == 300


@pytest.mark.parametrize("format", ["trl", "hf"])
def test_trl_trains(exported, chat_model, format, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets, peft, trl = (
        pytest.importorskip(name) for name in ("datasets", "peft", "trl")
    )
    splits = datasets.load_dataset(
        str(exported / format), cache_dir=str(tmp_path / "cache")
    )
    settings = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        logging_steps=1,
        learning_rate=2e-5,
        max_length=1024,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.SFTTrainer(
        str(chat_model),
        settings,
        train_dataset=splits["train"],
        eval_dataset=splits["test"],
        peft_config=peft.LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    assert 0 < trainer.evaluate()["eval_loss"] < 20


@pytest.mark.skipif(
    not LLAMAFACTORY,
    reason=(
        "CMINING_LLAMAFACTORY names no llamafactory-cli: it needs an environment of its"
        " own (pip install llamafactory==0.9.5)"
    ),
)
@pytest.mark.parametrize("format", ["llamafactory", "sharegpt"])
def test_llamafactory_trains(dataset, chat_model, format, tmp_path):
    export_dataset(dataset, format, out=tmp_path / "export", validation=0.1, test=0.1)
    changes = {
        "model_name_or_path": chat_model,
        "bf16": "false",
        "max_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "overwrite_cache": "true",
    }
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(tmp_path / "home"),
    }
    training = subprocess.run(
        [LLAMAFACTORY, "train", "lora.yaml", *(f"{k}={v}" for k, v in changes.items())],
        cwd=tmp_path / "export",
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert training.returncode == 0, training.stdout[-2000:] + training.stderr[-4000:]
    state = tmp_path / "export" / "lora" / "trainer_state.json"
    log = json.loads(state.read_text())["log_history"]
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    assert any("eval_loss" in row for row in log)


def test_openai_rows_hold_nothing_else(exported):
    for line in open(exported / "openai" / "train.jsonl", encoding="utf-8"):
        row = json.loads(line)
        assert list(row) == ["messages"]
        assert [sorted(m) for m in row["messages"]] == [["content", "role"]] * 2


def test_parquet_keeps_the_sources(exported):
    import pandas as pd

    tables = [pd.read_parquet(exported / "hf" / f"{s}.parquet") for s in SPLITS]
    table = pd.concat(tables).set_index("id").sort_index()
    points = table.loc["0007", "culture_points"]
    assert [point["title"] for point in points] == ["custom 1 ja"]
    assert table.loc["0003", "answer"] == "false"
    assert table.loc["0000", "answer"] == "A"
    assert set(table["prompt_version"]) == {"1"}


def test_yaml_of_the_card_and_the_settings(exported):
    yaml = pytest.importorskip("yaml")
    card = (exported / "hf" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["language"] == ["de", "en", "ja"]
    assert front["size_categories"] == ["n<1K"]
    lora = (exported / "llamafactory" / "lora.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(lora)
    assert settings["learning_rate"] == 2e-5
    assert settings["lr_scheduler_type"] == "cosine"
    assert settings["optim"] == "adamw_torch"
    batch = settings["per_device_train_batch_size"]
    steps = settings["gradient_accumulation_steps"]
    assert batch * steps == 64


# ---- splits


def test_no_concept_in_two_splits(exported):
    import pandas as pd

    concepts = {}
    for split in SPLITS:
        table = pd.read_parquet(exported / "hf" / f"{split}.parquet")
        of_items = [concept_set({"culture_points": p}) for p in table["culture_points"]]
        concepts[split] = set().union(*of_items)
    assert all(concepts.values())
    assert not concepts["train"] & concepts["validation"]
    assert not concepts["train"] & concepts["test"]
    assert not concepts["validation"] & concepts["test"]


def test_what_is_held_out_is_shown_nowhere_in_train(tmp_path):
    "Distractors tie everything together; only the items that show a held-out concept go."
    import pandas as pd

    folder = tmp_path / "set"
    others = [item((n * 7 + 1) % 300)["culture_points"] for n in range(300)]
    write(folder, (item(n, distractors=points) for n, points in enumerate(others)))
    record = export_dataset(folder, "hf", validation=0.1, test=0.1)
    asks, shows = {}, {}
    for split in SPLITS:
        table = pd.read_parquet(folder / "hf" / f"{split}.parquet")
        asks[split] = {p["title"] for points in table["culture_points"] for p in points}
        beside = {p["title"] for points in table["distractors"] for p in points}
        shows[split] = asks[split] | beside
    assert not asks["test"] & (shows["train"] | shows["validation"])
    assert not asks["validation"] & shows["train"]
    assert record["rows"]["test"] == 30
    assert record["rows"]["train"] > 150
    n_left_out = record["left_out"]["shows a concept that is held out"]
    assert sum(record["rows"].values()) + n_left_out == 300


@pytest.mark.parametrize(
    "changes", [{"group": "seven"}, {"usd": "free"}, {"seed": 2**70}]
)
def test_what_parquet_cannot_hold(tmp_path, changes):
    write(tmp_path / "set", [item(0), item(1, **changes)])
    with pytest.raises(RunError, match="does not fit into the columns"):
        export_dataset(tmp_path / "set", "hf", validation=0, test=0)


def test_same_splits_in_all_formats(exported):
    def test_ids(format):
        lines = (exported / format / "test.jsonl").open(encoding="utf-8")
        return [json.loads(line)["id"] for line in lines]

    assert test_ids("llamafactory") == test_ids("sharegpt") == test_ids("trl")


def test_a_concept_in_every_item_cannot_be_split(tmp_path):
    points = [{"id": "x", "lang": "en", "title": "Everywhere"}]
    write(
        tmp_path / "one",
        (item(n, culture_points=points + item(n)["culture_points"]) for n in range(50)),
    )
    with pytest.raises(
        RunError, match="50 items hang together in 1 components.*0 for none"
    ):
        export_dataset(tmp_path / "one", "trl")
    record = export_dataset(tmp_path / "one", "trl", validation=0, test=0)
    assert record["rows"] == {"train": 50}


# ---- hostile text


def test_the_card_is_inert(tmp_path):
    html = pytest.importorskip("markdown_it").MarkdownIt("commonmark").render
    write(
        tmp_path / "set",
        (
            item(n, question=HOSTILE, explanation=HOSTILE, generator=HOSTILE)
            for n in range(60)
        ),
    )
    for format in ROWS:
        export_dataset(tmp_path / "set", format, validation=0, test=0)
        card = (tmp_path / "set" / format / "README.md").read_text(encoding="utf-8")
        assert "onerror" in card
        assert "\u202e" not in card
        rendered = html(card)
        for acting in ("<img", "<script", "</script", "<a ", 'javascript:alert(1)"'):
            assert acting not in rendered


def test_lines_and_quotes_in_text_stay_in_their_row(tmp_path):
    odd = 'a\u2028b\u0085c\r\n"d" \\ \u0000 \U0001f38e'
    write(
        tmp_path / "set",
        (item(n, task="short_answer", options=None, answer=odd) for n in range(60)),
    )
    datasets = pytest.importorskip("datasets")
    for format in ("trl", "hf"):
        export_dataset(tmp_path / "set", format, validation=0, test=0)
        rows = datasets.load_dataset(
            str(tmp_path / "set" / format), cache_dir=str(tmp_path / "cache")
        )["train"]
        assert rows.num_rows == 60
        assert all(c[0]["content"].startswith(odd) for c in rows["completion"])


# ---- refusals


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"question": ""}, "question is missing"),
        ({"answer": None}, "answer is"),
        ({"lang": "../x"}, "lang is a language code"),
        ({"culture_points": [{"title": "x"}]}, "lacks id"),
        ({"question": "\ud800"}, "surrogate"),
        ({"distractors": [{"id": "x"}]}, "lacks id"),
        ({"distractors": "x"}, "no list"),
    ],
)
def test_a_broken_item_is_named(tmp_path, changes, reason):
    write(tmp_path / "set", [item(0), item(1, **changes)])
    with pytest.raises(RunError, match=f"items-00000.jsonl, line 2: .*{reason}"):
        export_dataset(tmp_path / "set", "hf")
    assert not (tmp_path / "set" / "hf").exists()


def test_no_items(tmp_path):
    with pytest.raises(RunError, match="cmining synthesize"):
        export_dataset(tmp_path, "trl")
    (tmp_path / "items-0.jsonl").write_text('{"id": "0001", "ta')
    with pytest.raises(RunError, match="line 1: no JSON"):
        export_dataset(tmp_path, "trl")


def test_few_examples_for_openai(tmp_path):
    write(tmp_path / "set", map(item, range(9)))
    with pytest.raises(RunError, match="9 examples, OpenAI takes at least 10"):
        export_dataset(tmp_path / "set", "openai", validation=0, test=0)
    record = export_dataset(tmp_path / "set", "trl", validation=0, test=0)
    assert record["rows"] == {"train": 9}


@pytest.mark.parametrize(
    "format, row, reason",
    [
        (
            "llamafactory",
            {"instruction": "a", "input": "", "output": ""},
            "an empty response",
        ),
        ("llamafactory", {"instruction": "a", "output": "b"}, "lacks the field input"),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}] * 2},
            "roles out of order",
        ),
        ("trl", {"prompt": [], "completion": []}, "an empty response"),
        (
            "openai",
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": None},
                ]
            },
            "an empty response",
        ),
        ("openai", [], "has not the shape"),
    ],
)
def test_a_broken_file_is_refused(exported, tmp_path, format, row, reason):
    for file in (exported / format).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with open(tmp_path / "train.jsonl", "a") as f:
        f.write(json.dumps(row) + "\n")
    with pytest.raises(RunError, match=f"train.jsonl, row 2\\d\\d .*{reason}"):
        check_export(tmp_path, format)


def test_a_description_must_fit(exported, tmp_path):
    for file in (exported / "sharegpt").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    info["cmining_train"]["columns"]["messages"] = "messages"
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(RunError, match="names the column messages"):
        check_export(tmp_path, "sharegpt")


def test_an_export_replaces_an_export_and_nothing_else(tmp_path):
    write(tmp_path / "set", map(item, range(120)))
    out = tmp_path / "out"
    export_dataset(tmp_path / "set", "llamafactory", out, validation=0.1, test=0.1)
    (out / "lora").mkdir()
    (out / "lora" / "weights").touch()
    export_dataset(tmp_path / "set", "hf", out, validation=0, test=0)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["README.md", "export.json", "lora", "train.parquet"]
    assert (out / "lora" / "weights").exists()
    with pytest.raises(RunError, match="no export"):
        export_dataset(tmp_path / "set", "hf", tmp_path / "set")
    assert not list(tmp_path.glob(".*"))
