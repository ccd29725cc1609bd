"""Training: the answer alone is learnt, and what was killed ends with the same bytes.

What cannot work is refused.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="training needs pip install 'cmining[train]'")

import torch
from safetensors.torch import load_file, save_file

from cmining.cli import main
from cmining.core.basics import RunError
from cmining.train import tune as module
from cmining.train.tune import (
    IGNORED,
    MemoryNeed,
    TuneParams,
    cut_step,
    encode_pairs,
    load_model,
    model_folder,
    must_recompute,
    padded_tokens,
    training_parts,
    tune,
)

PAIRS = [
    (f"What is custom {n}?", f"A feast in month {n % 12}" + ", and more" * (n % 5))
    for n in range(40)
]
# dropout makes the state of the random numbers matter
FAST = TuneParams(rate=0.01, batch=8, epochs=2, rank=4, dropout=0.1, device_batch=4)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def numbers_of(folder: Path) -> dict:
    "run.json without what depends on the clock and on free memory."
    record = json.loads((folder / "run.json").read_text())
    timed = ("seconds", "tokens_per_second")
    return {name: value for name, value in record.items() if name not in timed}


def assert_same_training(a: Path, b: Path) -> None:
    weights = "adapter_model.safetensors"
    assert files_of(a)[weights] == files_of(b)[weights]
    same = set(files_of(a)) - {"run.json"}
    assert {name: files_of(a)[name] for name in same} == {
        name: files_of(b)[name] for name in same
    }
    assert numbers_of(a) == numbers_of(b)


@pytest.fixture(scope="module")
def undisturbed(tiny_llama, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "undisturbed"
    tune(PAIRS, tiny_llama, out, FAST)
    return out


@pytest.mark.parametrize("stop", [2, 5, 10])
def test_interrupted_training_ends_with_the_same_bytes(
    stop, undisturbed, tiny_llama, tmp_path, monkeypatch
):
    "Stopped when the loss of a step is known and its checkpoint is not yet written."

    def stop_there(log, line):
        if f"step {stop} of 10   loss" in line and "goes on" not in line:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "SAY_SECONDS", 0)
        patch.setattr(module.RunLog, "say", stop_there)
        with pytest.raises(KeyboardInterrupt):
            tune(PAIRS, tiny_llama, tmp_path / "a", FAST, save_seconds=0)
    checkpoints = list((tmp_path / "a/.checkpoints-0").glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == [f"checkpoint-{stop - 1}"]
    # what a killed process leaves: half a checkpoint, half an adapter
    (tmp_path / "a/.checkpoints-0/checkpoint-99").mkdir()
    (tmp_path / "a/.seed-0.1").mkdir()
    tune(PAIRS, tiny_llama, tmp_path / "a", FAST)
    assert_same_training(tmp_path / "a/seed-0", undisturbed / "seed-0")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"seed-0", "run.json"}


KILLED = """
import json, sys
from cmining.train.tune import TuneParams, tune
model, out, params, pairs = sys.argv[1:]
tune(json.loads(pairs), model, out, TuneParams(**json.loads(params)), save_seconds=0)
"""


def test_killed_training_ends_with_the_same_bytes(undisturbed, tiny_llama, tmp_path):
    "SIGKILL at a random moment after the second checkpoint was begun."
    out = tmp_path / "a"
    arguments = [tiny_llama, out, json.dumps(asdict(FAST)), json.dumps(PAIRS)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, arguments)])
    second = out / ".checkpoints-0/checkpoint-2"
    while not second.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "seed-0").exists()
    tune(PAIRS, tiny_llama, out, FAST)
    assert_same_training(out / "seed-0", undisturbed / "seed-0")


def test_seeds_are_added_and_summed_up(undisturbed, tiny_llama, tmp_path):
    tune(PAIRS, tiny_llama, tmp_path / "a", FAST, seeds=[1])
    summary = tune(PAIRS, tiny_llama, tmp_path / "a", FAST, seeds=[0, 1])
    assert_same_training(tmp_path / "a/seed-0", undisturbed / "seed-0")
    assert summary == json.loads((tmp_path / "a/run.json").read_text())
    assert summary["seeds"] == [0, 1]
    loss = summary["final_loss"]
    assert loss["mean"] == pytest.approx(np.mean(list(loss["by_seed"].values())))
    assert loss["sd"] > 0
    weights = [
        (tmp_path / f"a/seed-{seed}/adapter_model.safetensors").read_bytes()
        for seed in (0, 1)
    ]
    assert weights[0] != weights[1]


def test_layers_computed_twice_give_the_same_bytes(
    undisturbed, tiny_llama, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "must_recompute", lambda need, free: True)
    tune(PAIRS, tiny_llama, tmp_path / "a", FAST)
    again = tmp_path / "a/seed-0"
    once = undisturbed / "seed-0"
    assert numbers_of(again)["recompute"] and not numbers_of(once)["recompute"]
    weights = "adapter_model.safetensors"
    assert files_of(again)[weights] == files_of(once)[weights]


def test_run_json(undisturbed, tiny_llama):
    record = json.loads((undisturbed / "seed-0/run.json").read_text())
    assert [step for step, _ in record["losses"]] == list(range(1, 11))
    assert record["losses"][-1][1] < record["losses"][0][1]
    assert record["items"] == 40 and record["seed"] == 0 and record["chat_template"]
    assert record["model"] == str(tiny_llama) and record["params"] == asdict(FAST)
    from transformers import AutoTokenizer

    examples, _ = encode_pairs(PAIRS, AutoTokenizer.from_pretrained(tiny_llama), 2048)
    assert record["tokens"] == 2 * sum(len(e.input_ids) for e in examples)


def test_peft_loads_what_is_written(undisturbed, tiny_llama):
    "And answers as we do, who add the update to the weights."
    import torch
    from peft import AutoPeftModelForCausalLM

    folder = undisturbed / "seed-0"
    theirs = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours, tokenizer = load_model(tiny_llama, folder)
    plain, _ = load_model(tiny_llama)
    tokens = tokenizer("What is a maypole?", return_tensors="pt").input_ids
    with torch.inference_mode():
        said, expected, before = (m(tokens).logits for m in (ours, theirs, plain))
    assert torch.allclose(said, expected, atol=1e-4)
    assert not torch.allclose(said, before, atol=1e-2)


def test_the_size_of_a_part_is_no_other_training(undisturbed, tiny_llama, tmp_path):
    "The gradient of a step is a sum over its items, however it is cut into parts."
    one = TuneParams(**{**asdict(FAST), "dropout": 0.0})
    other = TuneParams(**{**asdict(FAST), "dropout": 0.0, "device_batch": 3})
    assert (one.n_parts, other.n_parts) == (2, 3)
    losses = []
    for name, params in (("one", one), ("other", other)):
        tune(PAIRS, tiny_llama, tmp_path / name, params)
        losses.append(numbers_of(tmp_path / name / "seed-0")["losses"])
    assert np.allclose(losses[0], losses[1], rtol=0.02)


def test_loraplus_and_targets(tiny_llama, tmp_path):
    params = TuneParams(
        **{**asdict(FAST), "loraplus": 16.0, "targets": "q_proj,v_proj", "warmup": 0.1}
    )
    tune(PAIRS, tiny_llama, tmp_path / "a", params)
    config = json.loads((tmp_path / "a/seed-0/adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"]) == (4, 8)


@pytest.mark.parametrize("template", [True, False])
def test_answers_alone_are_learnt(template, tiny_llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    if not template:
        tokenizer.chat_template = None
    hard = [*PAIRS, ("江湖 ist? 🎎", "侠客 & <b>Öl</b>\n\n  x"), ("", "1"), ("Q\n", "\n")]
    examples, left_out = encode_pairs(hard, tokenizer, 2048)
    assert (len(examples), left_out) == (len(hard), 0)
    for (prompt, response), example in zip(hard, examples):
        n_prompt = example.labels.count(IGNORED)
        assert set(example.labels[:n_prompt]) == {IGNORED}
        assert example.labels[n_prompt:] == example.input_ids[n_prompt:]
        learnt = tokenizer.decode(example.labels[n_prompt:])
        assert learnt == response + ("<|im_end|>\n" if template else "<|im_end|>")
        assert prompt in tokenizer.decode(example.input_ids[:n_prompt])


def test_items_beyond_the_cutoff_are_left_out_and_counted(tiny_llama, tmp_path):
    long = ("What is long?", "so " * 200)
    params = TuneParams(**{**asdict(FAST), "cutoff": 200, "epochs": 1.0})
    summary = tune([*PAIRS, long], tiny_llama, tmp_path / "a", params)
    assert summary["items"] == 40 and summary["longest"] <= 200
    assert summary["left_out"] == {"longer than the cut-off": 1}


def test_steps_have_each_item_once_an_epoch_and_little_padding():
    lengths = np.random.default_rng(1).integers(20, 400, 640)
    params = TuneParams(epochs=2.0)
    parts = training_parts(lengths, params, seed=3)
    assert len(parts) == 20 * params.n_parts
    steps = [np.concatenate(parts[i : i + 16]) for i in range(0, len(parts), 16)]
    assert [len(step) for step in steps] == [64] * 20
    first, second = np.concatenate(steps[:10]), np.concatenate(steps[10:])
    assert sorted(first) == sorted(second) == list(range(640))
    assert not np.array_equal(parts[0], training_parts(lengths, params, seed=4)[0])
    padding = (
        sum(padded_tokens(lengths, part) for part in parts) / (2 * lengths.sum()) - 1
    )
    assert 0 < padding < 0.05


def test_the_last_step_may_be_small():
    lengths = np.full(67, 9)
    parts = training_parts(lengths, TuneParams(epochs=1.0), seed=0)
    assert [len(part) for part in parts[16:]] == [1, 1, 1]
    assert cut_step(np.array([5]), 1) == [1]


def test_what_does_not_fit_is_refused_with_the_sizes(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: 100_000)
    with pytest.raises(
        RunError, match=r"takes 0\.\d+ GB at least, and 0\.00 GB are free"
    ):
        tune(PAIRS, tiny_llama, tmp_path / "a", FAST)
    assert not (tmp_path / "a").exists()
    with pytest.raises(RunError, match="65 GB for the model"):
        must_recompute(MemoryNeed(65 * 10**9, 10**9, 10**10, 10**9), 40 * 10**9)


def test_other_content_is_refused_and_left_alone(undisturbed, tiny_llama, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other things"):
        tune(PAIRS, tiny_llama, tmp_path, FAST)
    assert files_of(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(RunError, match="another training .dataset_digest"):
        tune(PAIRS[1:], tiny_llama, undisturbed, FAST)
    with pytest.raises(RunError, match="another training .params"):
        tune(PAIRS, tiny_llama, undisturbed, TuneParams())


def test_a_hub_that_is_not_reached_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    import huggingface_hub

    def no_network(*args, **options):
        raise ConnectionError("no route to host\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(RunError) as e:
        model_folder("some/model")
    assert "ConnectionError: no route to host): download it" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_loss_that_is_lost_stops(tiny_llama, tmp_path):
    broken = shutil.copytree(tiny_llama, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(
        weights["model.norm.weight"], torch.nan
    )
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="the loss is nan at step 1, .*lower the rate"):
        tune(PAIRS, broken, tmp_path / "a", FAST)


def test_command(tiny_llama, tmp_path, capsys):
    dataset = tmp_path / "items"
    dataset.mkdir()
    items = [
        {
            "id": f"{n:03}",
            "task": "true_false",
            "lang": "de",
            "question": f"Brauch {n} ist ein Fest.",
            "answer": n % 2 == 0,
            "culture_points": [{"id": f"{n}", "lang": "de", "title": f"Brauch {n}"}],
        }
        for n in range(6)
    ]
    lines = "".join(json.dumps(item) + "\n" for item in items)
    (dataset / "items-00000.jsonl").write_text(lines)
    (dataset / "run.json").write_text(json.dumps({"arm": "mono"}))
    command = ["train", dataset, "--model", tiny_llama, "--out", tmp_path / "a"]
    command += ["--seeds", "2", "--epochs", "1", "--batch", "3", "--targets", "q_proj"]
    assert main([str(word) for word in command]) == 0
    shown = capsys.readouterr()
    assert "6 items learnt" in shown.out and "over 2 seeds" in shown.out
    assert "seed 1   step 2 of 2   loss" in shown.err
    record = json.loads((tmp_path / "a/run.json").read_text())
    assert record["arm"] == "mono" and record["dataset"] == str(dataset)
    assert record["params"]["targets"] == "q_proj"
    command[command.index("--epochs") + 1] = "2"
    assert main([str(word) for word in command]) == 2
    assert "holds adapters of another training" in capsys.readouterr().err


def test_smollm2_learns_and_goes_on(smollm2, tmp_path, monkeypatch):
    "A real model from a GGUF file: two steps at once, and with a stop between them."
    model, tokenizer = load_model(smollm2)
    assert model.num_parameters() == 134_515_008 and tokenizer.chat_template
    params = TuneParams(rate=1e-3, batch=2, epochs=1, device_batch=2)
    pairs = PAIRS[:4]
    tune(pairs, smollm2, tmp_path / "whole", params)
    record = json.loads((tmp_path / "whole/seed-0/run.json").read_text())
    assert len(record["losses"]) == 2 and record["chat_template"]

    def stop_there(log, line):
        if "step 2 of 2" in line:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "SAY_SECONDS", 0)
        patch.setattr(module.RunLog, "say", stop_there)
        with pytest.raises(KeyboardInterrupt):
            tune(pairs, smollm2, tmp_path / "stopped", params, save_seconds=0)
    tune(pairs, smollm2, tmp_path / "stopped", params)
    assert_same_training(tmp_path / "stopped/seed-0", tmp_path / "whole/seed-0")
