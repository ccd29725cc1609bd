"""Benchmarks: files are refused at their line, scores are those of lm-evaluation-harness, and a
killed evaluation ends with the same numbers.

Most of it asks a model of two layers with random weights; SmolLM2 is asked twenty questions.
"""

import csv
import gzip
import json
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

import cmining
from cmining.core.basics import CorpusError, RunError
from cmining.models.prompts import Endpoint, Reply
from cmining.tasks import utils
from cmining.train.tasks import (
    TASK_FOLDER,
    held_out_questions,
    read_task,
    task_names,
    task_questions,
    write_questions,
)

DEV = Path(__file__).parent.parent.parent / "shared" / "data" / "benchmarks"
SAMPLE = Path(__file__).parent.parent / "data" / "sample"
WORDS = "tea rice soup bread fish salt milk plum bean corn leek lamb".split()


# ---- what is asked


def choices(n: int) -> list[dict]:
    "Questions with options of different lengths, in several countries."
    rng = random.Random(0)
    return [
        {
            "id": f"q{i}",
            "country": ("Mexico", "Japan", "日本")[i % 3],
            "lang": "en",
            "question": f"What is eaten with {' and '.join(rng.sample(WORDS, 3))}?",
            "options": [" ".join(rng.sample(WORDS, rng.randint(1, 3))) for _ in "ABCD"],
            "answer": rng.randrange(4),
        }
        for i in range(n)
    ]


def judgements(n: int) -> list[dict]:
    "CulturalBench-Hard as it is downloaded: four rows a question, one of them right."
    return [
        {
            "data_idx": 4 * i + k,
            "question_idx": i,
            "prompt_question": f"What is drunk at {question['question'][20:]}",
            "prompt_option": question["options"][k],
            "answer": k == question["answer"],
            "country": question["country"],
        }
        for i, question in enumerate(choices(n))
        for k in range(4)
    ]


def stories(n: int) -> list[dict]:
    "NormAd as it is downloaded."
    return [
        {
            "ID": i,
            "Country": "new_zealand",
            "Value": "Hospitality",
            "Rule-of-Thumb": f"Accept {word} when it is offered.",
            "Story": f"Adam is offered {word} and refuses.",
            "Gold Label": ("yes", "no", "neutral")[i % 3],
        }
        for i, word in enumerate(WORDS[:n])
    ]


def write_jsonl(rows: list[dict], file: Path) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def write_csv(rows: list[dict], file: Path) -> Path:
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    "A folder of benchmark files in three formats."
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(choices(12), folder / "blend_mc_dev.jsonl")
    write_csv(judgements(6), folder / "CulturalBench-Hard.csv")
    write_jsonl(stories(9), folder / "normad.jsonl")
    short = [
        {"id": f"s{i}", "country": "Peru", "lang": "en", "question": f"What is {w}?"}
        | {"answers": [[[w], [], 2]]}
        for i, w in enumerate(WORDS[:5])
    ]
    write_jsonl(short, folder / "blend_sa.jsonl")
    return folder


# ---- files


def refused(source: str, kind: str, folder: Path) -> str:
    with pytest.raises(ValueError) as e:
        utils.load_questions(source, kind, folder)
    return str(e.value)


def test_a_missing_column_is_refused_with_the_line(tmp_path):
    rows = choices(5)
    del rows[2]["answer"]
    write_jsonl(rows, tmp_path / "blend_mc.jsonl")
    message = refused("blend_mc", "choice", tmp_path)
    assert "blend_mc.jsonl, line 3: column answer" in message


@pytest.mark.parametrize("column", ["prompt_question", "answer", "question_idx"])
def test_a_missing_column_of_a_table_is_refused(tmp_path, column):
    rows = [{k: v for k, v in row.items() if k != column} for row in judgements(2)]
    write_csv(rows, tmp_path / "culturalbench_hard.csv")
    message = refused("culturalbench_hard", "judgement", tmp_path)
    assert "line 2: column " in message
    assert f"{column} is missing" in message or f"{column} or " in message


def test_three_rows_a_question_are_refused_with_the_line(tmp_path):
    rows = judgements(4)
    del rows[9]  # of the third question, which begins on line 10
    write_csv(rows, tmp_path / "culturalbench_hard.csv")
    message = refused("culturalbench_hard", "judgement", tmp_path)
    assert "line 10: question '2' has 3 judgements" in message


@pytest.mark.parametrize("answer", ["E", "", 4, -1, 1.5, "soy sauce", None, True])
def test_a_wrong_answer_is_refused_with_the_line(tmp_path, answer):
    rows = choices(3)
    rows[1]["answer"] = answer
    write_jsonl(rows, tmp_path / "sage.jsonl")
    assert "sage.jsonl, line 2: " in refused("sage", "choice", tmp_path)
    with pytest.raises(CorpusError, match="line 2"):
        task_questions(read_task("sage"), tmp_path)


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"id": "\xff"}', b"[" * 100_000, b'"text"'], ids=range(5)
)
def test_a_line_that_is_no_question_is_refused(tmp_path, line):
    file = write_jsonl(choices(1), tmp_path / "sage.jsonl")
    file.write_bytes(file.read_bytes() + line + b"\n")
    assert "sage.jsonl, line 2" in refused("sage", "choice", tmp_path)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    whole = gzip.compress(write_jsonl(choices(50), tmp_path / "rows").read_bytes())
    (tmp_path / "sage.jsonl.gz").write_bytes(whole[:-40])
    assert "sage.jsonl.gz is broken after line" in refused("sage", "choice", tmp_path)
    (tmp_path / "sage.jsonl.gz").write_bytes(b"not compressed at all")
    assert "sage.jsonl.gz is broken" in refused("sage", "choice", tmp_path)


def test_a_question_without_an_option_is_left_out_and_counted(tmp_path):
    rows = judgements(3)
    rows[5]["prompt_option"] = None
    write_csv(rows, tmp_path / "culturalbench_hard.csv")
    questions, told = utils.load_questions("culturalbench_hard", "judgement", tmp_path)
    assert {q["question_id"] for q in questions} == {"0", "2"}
    assert told["left_out"] == {"a judgement without its option": 1}
    assert told["as_published"] is False  # two questions, not 1,227


def test_a_compressed_file_has_the_same_digest(tmp_path):
    plain, zipped = tmp_path / "plain", tmp_path / "zipped"
    for folder in (plain, zipped):
        folder.mkdir()
    file = write_jsonl(choices(4), plain / "sage.jsonl")
    with gzip.open(zipped / "sage_dev.jsonl.gz", "wb") as out:
        out.write(b"\xef\xbb\xbf" + file.read_bytes())  # with a byte order mark, too
    one, two = (utils.load_questions("sage", "choice", f)[1] for f in (plain, zipped))
    assert one["digest"] == two["digest"]
    assert two["files"] == ["sage_dev.jsonl.gz"]


@pytest.mark.skipif(not DEV.is_dir(), reason="the dev halves are not beside the checkout")
@pytest.mark.parametrize(
    ("task", "n"),
    [("blend_mc", 781), ("blend_sa", 965), ("cmmlu_china", 966), ("jmmlu_japan", 290)],
)
def test_the_dev_halves_are_read_whole(task, n):
    questions, told = task_questions(read_task(task), DEV)
    assert told["rows"] == len(questions) == n
    assert not told["left_out"]
    assert all(q["answers"] if task == "blend_sa" else q["options"] for q in questions)


def test_no_file_and_no_hub_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("culturescope", "global_mmlu_lite"):
        with pytest.raises(CorpusError, match=f"no {name}\\*.jsonl") as e:
            task_questions(read_task(name), tmp_path)
        assert "\n" not in str(e.value)


# ---- scores by hand


def test_always_false_scores_nothing(data):
    task = read_task("culturalbench_hard")
    questions, _ = task_questions(task, data)
    rows = [task.results(q, [(-9, False), (-1, True)])[task.metric] for q in questions]
    assert sum(row["correct"] for row in rows) / len(rows) == 0.75
    assert task.aggregate(rows) == 0
    ids = [row["question_id"] for row in rows]
    assert cmining.question_accuracy(ids, [row["correct"] for row in rows]) == 0
    assert cmining.question_accuracy(ids, [True] * len(ids)) == 1


def test_a_coin_scores_one_in_sixteen():
    rng = random.Random(1)
    ids = [i // 4 for i in range(80_000)]
    coin = [rng.random() < 0.5 for _ in ids]
    assert abs(cmining.question_accuracy(ids, coin) - 1 / 16) < 0.01
    assert read_task("culturalbench_hard").chance == 1 / 16


def test_blend_is_the_mean_over_countries(data):
    task = read_task("blend_mc")
    questions, _ = task_questions(task, data)
    rows = []
    for q in questions:
        known = q["country"] == "Japan"
        scores = [(0.0 if known and i == q["answer"] else -1.0, False) for i in range(4)]
        rows.append(task.results(q, scores)[task.metric])
    by_hand = []
    for country in ("Mexico", "Japan", "日本"):
        of = [q for q in questions if q["country"] == country]
        right = [1 if country == "Japan" else q["answer"] == 0 for q in of]
        by_hand.append(sum(right) / len(right))
    assert task.aggregate(rows) == pytest.approx(sum(by_hand) / 3)


@pytest.mark.parametrize("name", task_names())
def test_every_task_file_is_whole(name):
    task = read_task(name)
    assert task.name == name
    assert task.aggregate in (
        utils.mean_accuracy,
        utils.country_accuracy,
        utils.whole_accuracy,
    )


# ---- a model of two layers


@pytest.fixture(scope="module")
def byte_llama(tmp_path_factory) -> Path:
    "A folder with a random Llama whose tokens are bytes, and a chat template."
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llama")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<s>", "</s>", *alphabet])}
    merges = [("t", "e"), ("Ġ", "t"), ("Ġ", "A"), ("Ġ", "B"), ("r", "i")]
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    tokens = Tokenizer(models.BPE(vocabulary, merges))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def read_rows(folder: Path, task: str) -> list[dict]:
    lines = (folder / f"questions-{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


HARNESS_TASKS = ["blend_mc", "blend_mc_text", "culturalbench_hard", "normad_rule"]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_the_harness_gives_the_same(byte_llama, data, tmp_path, chat, monkeypatch):
    "The same choice at every question, the same log-probabilities, the same accuracy."
    if find_spec("lm_eval") is None:
        pytest.skip("lm-evaluation-harness is not installed: pip install lm-eval")
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cmining.train.score import score_options

    tokenizer = AutoTokenizer.from_pretrained(byte_llama)
    model = AutoModelForCausalLM.from_pretrained(byte_llama, dtype=torch.float32).eval()
    # a copy: the harness needs the folder, and not this package
    folder = shutil.copytree(TASK_FOLDER, tmp_path / "tasks")
    theirs = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu"),
        tasks=HARNESS_TASKS,
        task_manager=TaskManager(include_path=str(folder), metadata={"data": str(data)}),
        apply_chat_template=chat,
        bootstrap_iters=0,
    )
    for name in HARNESS_TASKS:
        task = read_task(name)
        questions, _ = task_questions(task, data)
        results, _ = score_options(
            model, tokenizer, task, questions, tmp_path / f"{name}.jsonl", chat=chat
        )
        ours = [task.results(q, r)[task.metric] for q, r in zip(questions, results)]
        samples = sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
        assert len(samples) == len(ours)
        for row, sample in zip(ours, samples):
            other = sample[task.metric]
            assert row["id"] == other["id"]
            assert row["scores"] == pytest.approx(other["scores"], abs=1e-4)
            assert (row["chosen"], row["correct"]) == (other["chosen"], other["correct"])
        value = theirs["results"][name][f"{task.metric},none"]
        assert task.aggregate(ours) == pytest.approx(value)


def test_the_functions_of_the_tasks_need_nothing_of_this_package(data):
    code = f"""
import importlib.util, sys
sys.modules["cmining"] = None
spec = importlib.util.spec_from_file_location("utils", {str(TASK_FOLDER / "utils.py")!r})
utils = importlib.util.module_from_spec(spec)
spec.loader.exec_module(utils)
print(len(utils.load_questions("blend_mc", "choice", {str(data)!r})[0]))
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "12\n"


def test_results_say_what_they_are(byte_llama, data, tmp_path):
    from cmining.train.benchmark import evaluate_model

    tasks = ["blend_mc", "culturalbench_hard", "normad_country", "blend_sa"]
    (record,) = evaluate_model(byte_llama, tasks, data, tmp_path)
    assert record == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (record["arm"], record["seed"], record["adapter"]) == ("base", None, None)
    assert record["chat_template"] is False
    assert {"torch", "transformers", "cmining"} <= record["versions"].keys()
    for name in tasks:
        task, scores, rows = (
            read_task(name),
            record["tasks"][name],
            read_rows(tmp_path, name),
        )
        assert scores["value"] == task.aggregate(rows)
        assert scores["rows"] == len(rows)
        assert scores["chance"] == task.chance
        assert scores["digest"] == task_questions(task, data)[1]["digest"]
    hard = record["tasks"]["culturalbench_hard"]
    assert (hard["n"], hard["rows"], hard["questions"]) == (6, 24, 6)
    assert {"value", "n"} == hard["by_country"]["Mexico"].keys()
    row = read_rows(tmp_path, "blend_mc")[0]
    needed = {"id", "country", "lang", "subject", "correct", "chosen", "answer", "scores"}
    assert needed <= row.keys()
    assert row["chosen"] == row["scores"].index(max(row["scores"]))
    # again: nothing is done twice, and another model has no place here
    stamp = (tmp_path / "questions-blend_mc.jsonl").stat().st_mtime_ns
    assert evaluate_model(byte_llama, tasks, data, tmp_path) == [record]
    assert (tmp_path / "questions-blend_mc.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match="chat_template was False, and is True"):
        evaluate_model(byte_llama, tasks, data, tmp_path, chat=True)


def test_every_seed_of_an_adapter(byte_llama, data, tmp_path):
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    from cmining.train.benchmark import evaluate_model

    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(byte_llama), config
        )
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.5)
        folder = tmp_path / "lora" / f"seed-{seed}"
        model.save_pretrained(folder)
        (folder / "run.json").write_text(json.dumps({"arm": "full", "seed": seed}))
    records = evaluate_model(
        byte_llama, ["blend_mc"], data, tmp_path / "out", adapter=tmp_path / "lora"
    )
    assert [(r["arm"], r["seed"]) for r in records] == [("full", 0), ("full", 1)]
    one, two = (read_rows(tmp_path / "out" / f"seed-{k}", "blend_mc") for k in (0, 1))
    assert [r["scores"] for r in one] != [r["scores"] for r in two]
    with pytest.raises(RunError, match="nowhere is no adapter"):
        evaluate_model(
            byte_llama, ["blend_mc"], data, "out", adapter=tmp_path / "nowhere"
        )


# ---- killed


def test_killed_and_resumed_it_ends_with_the_same_numbers(byte_llama, tmp_path):
    from cmining.train.benchmark import evaluate_model

    write_jsonl(choices(500), tmp_path / "sage.jsonl")
    line = ["evaluate", byte_llama, "--tasks", "sage_text", "--data", tmp_path]
    code = "import sys; from cmining.cli import main; sys.exit(main())"
    killed = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, line), "--out", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    evaluate_model(byte_llama, ["sage_text"], tmp_path, tmp_path / "whole")
    work = tmp_path / "killed" / "work"
    while killed.poll() is None:
        journals = list(work.glob("*.jsonl")) if work.is_dir() else []
        if journals and journals[0].read_bytes().count(b"\n") > 3:
            killed.send_signal(signal.SIGKILL)
        time.sleep(0.005)
    assert killed.returncode == -signal.SIGKILL
    (journal,) = work.glob("*.jsonl")
    done = journal.read_bytes()
    assert not (tmp_path / "killed" / "results.json").exists()
    evaluate_model(byte_llama, ["sage_text"], tmp_path, tmp_path / "killed")
    assert journal.read_bytes().startswith(done)  # what was done is not done again
    whole, resumed = (tmp_path / name for name in ("whole", "killed"))
    assert read_rows(whole, "sage_text") == read_rows(resumed, "sage_text")
    records = [json.loads((f / "results.json").read_text()) for f in (whole, resumed)]
    values = [record["tasks"]["sage_text"]["value"] for record in records]
    assert values[0] == values[1]


# ---- servers


def test_replies_are_read_strictly(data, tmp_path, monkeypatch):
    from cmining.train import score

    said = iter(['{"answer_choice": "B"}', "C", "who knows", "It is A.", ""] * 100)

    def answer(prompts, *args, **settings):
        for prompt in prompts:
            yield Reply(prompt.key, next(said), None, "m", completion_tokens=1)

    monkeypatch.setattr(score, "ask", answer)
    task = read_task("blend_mc")
    questions, _ = task_questions(task, data)
    rows, use = score.ask_questions(
        Endpoint("m", "http://localhost:9/v1"), task, questions[:5], tmp_path / "j.jsonl"
    )
    assert [row["chosen"] for row in rows] == [1, 2, None, 0, None]
    assert use["unread"] == 2
    assert rows[2]["correct"] == 0


def test_an_endpoint_that_is_not_there_is_one_line(data, tmp_path, monkeypatch):
    from cmining.train.benchmark import evaluate_model

    monkeypatch.setattr("cmining.models.budget.FIRST_WAIT", 0.01)
    endpoint = Endpoint("m", "http://127.0.0.1:9/v1", max_attempts=2)
    with pytest.raises(RunError, match="no answer"):
        evaluate_model("m", ["blend_mc"], data, tmp_path, endpoint=endpoint)
    with pytest.raises(RunError, match="ask blend_mc, or give a model with weights"):
        evaluate_model("m", ["blend_mc_text"], data, tmp_path, endpoint=endpoint)


# ---- held-out concepts


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    from cmining import mine_corpus

    folder = tmp_path_factory.mktemp("runs") / "sample"
    mine_corpus(SAMPLE, folder, jobs=1)
    return folder


def test_held_out_concepts_are_asked_fairly(run, tmp_path):
    from cmining import read_run
    from cmining.core.scripts import fold
    from cmining.instruct.offline import base_title, main_script

    questions = held_out_questions(run, share=0.3, seed=1)
    points = read_run(run, "culture_points")
    titles = set(zip(points["lang"], points["title"]))
    assert len({q["id"] for q in questions}) == len(questions) > 40
    liked: dict[str, int] = {}
    for q in questions:
        assert q["options"][q["answer"]] == q["concept"]
        assert len({fold(option) for option in q["options"]}) == 4
        assert {(q["lang"], option) for option in q["options"]} <= titles
        assert len({main_script(option) for option in q["options"]}) == 1
        assert fold(base_title(q["concept"])) not in fold(q["question"])
        liked[q["concept"]] = liked.get(q["concept"], 0) + 1
    for q in questions:  # the four titles are right equally often
        assert len({liked[option] for option in q["options"]}) == 1
    assert questions == held_out_questions(run, share=0.3, seed=1)
    write_questions(questions, tmp_path / "held_out.jsonl")
    for name in ("held_out", "held_out_text"):
        read, told = task_questions(read_task(name), tmp_path)
        assert told["questions"] == len(liked)
        assert [q["concept"] for q in read] == [q["concept"] for q in questions]


def test_titles_may_be_named(run):
    from cmining import read_run

    titles = read_run(run, "culture_points")["title"][:20]
    questions = held_out_questions(run, titles)
    assert {q["concept"] for q in questions} <= set(titles)
    assert len({q["concept"] for q in questions}) > 5
    title = titles[0]
    with pytest.raises(
        RunError, match="no culture point of the run has the title 'xyzzy'"
    ):
        held_out_questions(run, [title, "xyzzy"])


# ---- SmolLM2


def test_smollm2_answers_twenty_questions(smollm2, tmp_path):
    from cmining.train.benchmark import evaluate_model

    write_jsonl(easy_questions(), tmp_path / "sage.jsonl")
    (record,) = evaluate_model(smollm2, ["sage", "sage_text"], tmp_path, tmp_path / "out")
    assert record["tasks"]["sage_text"]["n"] == 20
    # capitals, by their names: a model of any size knows most of them
    assert record["tasks"]["sage_text"]["value"] >= 0.6
    assert record["tasks"]["sage"]["use"]["tokens"] > 400


CAPITALS = (
    "France Paris, Spain Madrid, Italy Rome, Germany Berlin, Japan Tokyo, China Beijing,"
    " Egypt Cairo, Russia Moscow, Greece Athens, Portugal Lisbon, Poland Warsaw, Austria"
    " Vienna, Cuba Havana, Peru Lima, Iran Tehran, Iraq Baghdad, Kenya Nairobi, Norway"
    " Oslo, Sweden Stockholm, Ireland Dublin"
)


def easy_questions() -> list[dict]:
    "Twenty questions with one word each to answer."
    pairs = [pair.split() for pair in CAPITALS.split(",")]
    rows = []
    for i, (country, capital) in enumerate(pairs):
        options = [pairs[(i + k) % len(pairs)][1] for k in (0, 3, 7, 12)]
        options = options[i % 4 :] + options[: i % 4]
        question = f"What is the capital of {country}?"
        rows.append({"id": country, "country": country, "lang": "en"})
        rows[-1] |= {"question": question, "options": options}
        rows[-1]["answer"] = options.index(capital)
    return rows


@pytest.fixture(scope="module")
def smollm2_server(smollm2_gguf):
    "SmolLM2 behind the OpenAI protocol."
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    script = Path(__file__).parent / "test_llm_real.py"
    with subprocess.Popen(
        [sys.executable, str(script), str(smollm2_gguf)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        lines = (line.split() for line in process.stdout if line.startswith("ADDRESS"))
        address = next(lines, [None, None])[1]
        assert address, "the server did not start"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            try:
                opener.open(f"{address}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield f"{address}/v1"
        process.kill()


def test_smollm2_behind_a_server(smollm2_server, tmp_path, monkeypatch):
    from cmining.train.benchmark import evaluate_model

    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    write_jsonl(easy_questions(), tmp_path / "sage.jsonl")
    endpoint = Endpoint("smollm2", smollm2_server, concurrency=2)
    out = tmp_path / "out"
    (record,) = evaluate_model("smollm2", ["sage"], tmp_path, out, endpoint=endpoint)
    use = record["tasks"]["sage"]["use"]
    assert use["by_logprobs"] + use["by_reading"] == 20
    assert use["by_logprobs"] >= 15  # this server offers them
    rows = read_rows(out, "sage")
    assert all("said" in row for row in rows)
    assert (record["backend"], record["chat_template"]) == ("endpoint", True)
    # what is in the journal is not asked again
    (out / "results.json").unlink()
    nowhere = Endpoint("smollm2", smollm2_server.replace("/v1", "/none/v1"))
    with pytest.raises(RunError):
        evaluate_model(
            "smollm2", ["sage"], tmp_path, tmp_path / "other", endpoint=nowhere
        )
    again = evaluate_model("smollm2", ["sage"], tmp_path, out, endpoint=endpoint)
    assert again[0]["tasks"]["sage"]["value"] == record["tasks"]["sage"]["value"]
