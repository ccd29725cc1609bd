"""What mining promises: the same bytes, resumption, every entry accounted for, and no traceback for a user's mistake."""

import gzip
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmining.core.basics import CorpusError, RunError
from cmining.core.runs import Params, read_record, read_run
from cmining.mine import pipeline
from cmining.mine.control import MIN_GAIN
from cmining.mine.pipeline import mine_corpus
from cmining.models.encoders import load_encoder

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "sample"
DUMPS = ROOT.parent / "shared" / "data" / "dumps"
COMMAND = str(Path(sys.executable).parent / "cmining")


def cmining(*args, **kwargs):
    return subprocess.run(
        [COMMAND, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs
    )


def points_of(run):
    return (Path(run) / "culture_points.parquet").read_bytes()


def write(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    mine_corpus(SAMPLE, run, jobs=1)
    return run


# ---- the same bytes


def test_two_workers(reference, tmp_path):
    mine_corpus(SAMPLE, tmp_path, jobs=2)
    assert points_of(tmp_path) == points_of(reference)


def test_renamed_files_and_shuffled_rows(reference, tmp_path):
    for file in SAMPLE.glob("*.jsonl"):
        rows = file.read_text(encoding="utf-8").splitlines()
        random.Random(1).shuffle(rows)
        half = len(rows) // 2
        write(tmp_path / "corpus" / file.stem / "b.jsonl", rows[:half])
        write(tmp_path / "corpus" / file.stem / "a.jsonl.gz", rows[half:])
    mine_corpus(tmp_path / "corpus", tmp_path / "run", jobs=1)
    assert points_of(tmp_path / "run") == points_of(reference)


def test_killed_three_times_and_resumed(reference, tmp_path):
    run = tmp_path / "run"
    command = [COMMAND, "mine", str(SAMPLE), "--out", str(run), "--jobs", "2"]
    for step in ("entries", "vectors", "refined"):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and not (run / "work" / step).is_dir():
            time.sleep(0.0005)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (run / "culture_points.parquet").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert points_of(run) == points_of(reference)


def test_second_run_computes_only_what_changed(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    mine_corpus(SAMPLE, tmp_path / "run", Params.of(alpha=0.1), jobs=1)
    resumed = {
        s["step"]: s["resumed"] == s["tasks"]
        for s in read_record(tmp_path / "run")["steps"]
    }
    # other points are compared for series
    again = [step for step, done in resumed.items() if not done]
    assert again == ["series", "discover"]


def test_auto_takes_no_projection_for_the_bundled_encoder(reference, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    mine_corpus(SAMPLE, run, Params.of(projection="auto"), jobs=1)
    for table in ("culture_points", "groups", "entries"):
        name = f"{table}.parquet"
        assert (run / name).read_bytes() == (reference / name).read_bytes()
    record = read_record(run)
    assert record["params"]["projection"] == "auto"
    measured = record["control"]["projection"]
    assert measured["chosen"] == "none"
    gain = measured["center"]["together"] - measured["none"]["together"]
    assert 0 < gain < MIN_GAIN


# ---- every entry is accounted for


def test_every_entry_is_a_row(reference):
    rows = {
        f.stem: f.read_text(encoding="utf-8").splitlines() for f in SAMPLE.glob("*.jsonl")
    }
    entries = read_run(reference, "entries")
    assert entries["lang"].value_counts().to_dict() == {
        lang: len(r) for lang, r in rows.items()
    }
    assert set(entries["stage"]) <= {
        "pruned",
        "sparse",
        "incoherent",
        "small",
        "mixed",
        "shared",
        "culture_point",
    }
    assert entries.loc[entries["stage"] == "pruned", "reason"].notna().all()
    assert set(entries.loc[entries["stage"] != "pruned", "reason"].dropna()) <= {
        "unstable",
        "counterpart",
        "series",
    }
    assert entries[["lang", "id"]].equals(
        entries[["lang", "id"]].sort_values(["lang", "id"], ignore_index=True)
    )


def test_run_folder_holds_the_columns_of_the_contract(reference):
    points = read_run(reference, "culture_points")
    groups = read_run(reference, "groups")
    assert (
        list(points)
        == "id lang title lead group group_size dominance p_value q_value dispersion"
        " entropy centrality rank stability isolation foreign_lang foreign_title"
        " foreign_similarity n_langs series series_size kind".split()
    )
    assert list(groups)[:6] == "group size lang dominance p_value q_value".split()
    assert list(groups)[6:] == [
        f"n_{lang}" for lang in ("de", "en", "es", "fr", "ja", "zh")
    ]
    assert groups.filter(like="n_").sum(axis=1).equals(groups["size"].astype("int64"))
    assert points.equals(points.sort_values(["lang", "group", "rank"], ignore_index=True))
    record = read_record(reference)
    assert (
        record["params"]["theta"] == 0.7
        and record["peak_memory_bytes"] > 0
        and record["steps"]
    )


def test_clean_removes_the_work(tmp_path):
    mine_corpus(SAMPLE, tmp_path, jobs=1, clean=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "culture_points.parquet",
        "entries.parquet",
        "groups.parquet",
        "run.json",
        "series.parquet",
    ]


# ---- other models than the default ones


def test_a_sentence_transformers_model_and_a_spacy_model(tiny, trained, tmp_path):
    rows = [
        {"title": f"{word} {i}th thing", "text": "a text of its own"}
        for i in range(10)
        for word in ("red", "blue")
    ]
    write(
        tmp_path / "corpus" / "en.jsonl",
        [*rows, {"title": "Olden Days", "text": "long ago"}],
    )
    mine_corpus(
        tmp_path / "corpus",
        tmp_path / "run",
        Params.of(encoder=str(tiny), ner=[str(trained)]),
        jobs=1,
    )
    record = read_record(tmp_path / "run")
    assert record["encoder"]["dim"] == 16 and record["pruned"] == {"en": {"date": 1}}


def test_two_spacy_models_for_one_language_are_refused(trained, tmp_path):
    write(tmp_path / "corpus" / "en.jsonl", [{"title": "Only", "text": "One entry."}])
    with pytest.raises(RunError, match="two spaCy models"):
        mine_corpus(
            tmp_path / "corpus",
            tmp_path / "run",
            Params.of(ner=[str(trained), str(trained)]),
            jobs=1,
        )


def test_hdbscan_instead_of_kmeans(tmp_path):
    mine_corpus(SAMPLE, tmp_path, Params.of(clusterer="hdbscan"), jobs=1)
    assert (read_run(tmp_path, "groups")["size"] >= 5).all()


# ---- from a dump to culture points


@pytest.mark.skipif(
    not DUMPS.is_dir(),
    reason="real dumps are not beside the checkout (../shared/data/dumps)",
)
def test_ingest_and_mine(tmp_path):
    for lang, dump in {
        "de": "ids-dewiki-20170701-sample.xml.gz",
        "en": "gensim-enwiki-shortened.xml.bz2",
    }.items():
        assert (
            cmining(
                "ingest",
                DUMPS / lang / dump,
                "--out",
                tmp_path / "corpus",
                "--lang",
                lang,
                "--sample",
                15,
            ).returncode
            == 0
        )
    done = cmining("mine", tmp_path / "corpus", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert read_run(tmp_path / "run", "entries")["lang"].value_counts().to_dict() == {
        "de": 15,
        "en": 15,
    }
    title = read_run(tmp_path / "run", "entries")["title"].iloc[0]
    assert title in cmining("explain", tmp_path / "run", title).stdout


# ---- bad input


def test_small_languages_and_hostile_rows(tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(SAMPLE, corpus)
    write(corpus / "it.jsonl", [])
    write(
        corpus / "pt.jsonl",
        [{"title": f"Coisa {i}", "text": f"Texto sobre a coisa {i}."} for i in "abc"],
    )
    write(
        corpus / "nl.jsonl",
        [
            {"title": "Leeg", "paragraphs": ["", "  "]},
            {"title": "", "text": "zonder titel"},
            {"title": "Nul\x00teken", "text": "een\x00 tekst"},
            {"title": "Twee\nregels", "text": "tekst"},
            {"title": float("nan"), "id": float("nan"), "text": "zonder titel"},
            {"title": "", "id": "x", "text": "een zonder titel"},
            {"title": "", "id": "x", "text": "nog een zonder titel"},
            {"title": "Dubbel", "text": "kort"},
            {"title": "Dubbel", "text": "een langere tekst"},
            {"title": "../../etc/passwd", "text": "<script>alert(1)</script>"},
            "{broken",
            "[1, 2]",
        ],
    )
    assert cmining("mine", corpus, "--out", tmp_path / "run", "--jobs", 1).returncode == 0
    entries = read_run(tmp_path / "run", "entries")
    assert (entries["lang"] == "pt").sum() == 3 and (entries["lang"] == "it").sum() == 0
    dutch = entries[entries["lang"] == "nl"].set_index("title")
    assert len(dutch) == 10
    assert dutch.loc["Leeg", "reason"] == "no text"
    # also the second of an id
    assert dutch.loc["", "reason"].tolist() == ["no title"] * 4
    assert sorted(dutch.loc["Dubbel", "reason"].fillna("kept")) == ["duplicate", "kept"]
    assert not dutch.index.str.contains("[\x00\n]").any()
    assert sum(read_record(tmp_path / "run")["skipped"].values()) >= 2


def test_a_corpus_of_one_tiny_language_has_no_culture_points(tmp_path):
    write(tmp_path / "corpus" / "en.jsonl", [{"title": "Only", "text": "One entry."}])
    assert len(mine_corpus(tmp_path / "corpus", tmp_path / "run", jobs=1)) == 0


ROW = '{"title": "Tee", "text": "Ein Getränk."}'
WITHOUT_ENTRIES = {
    "nothing": ("de.jsonl", b"", "is empty"),
    "blank lines": ("de.jsonl", b"\n \n\n", "is empty"),
    "a JSON array": ("de.jsonl", f"[{ROW}]".encode(), "is a JSON array: give one object"),
    "an array over lines": ("de.jsonl", b'[\n{\n"title": "Tee"\n}\n]', "is a JSON array"),
    "an array after a mark": ("de.jsonl", f"[{ROW}]".encode("utf-8-sig"), "JSON array"),
    "an indented object": ("de.jsonl", b'{\n "title": "Tee"\n}', "over several lines"),
    "UTF-32": ("de.jsonl", ROW.encode("utf-32-be"), "save it as UTF-8"),
    "gzip": ("de.jsonl", gzip.compress(ROW.encode()), "name it .jsonl.gz"),
    "no gzip": ("de.jsonl.gz", ROW.encode(), "is no whole gzip file"),
    "an array in gzip": ("de.jsonl.gz", gzip.compress(b"[1]"), "is a JSON array"),
    "a dump": ("de.jsonl", b"<mediawiki>", "cmining ingest"),
    "a table": ("de.jsonl", b"title,text\nTee,gut\n", "has lines that are no object"),
    "other columns": ("de.jsonl", b'{"name": "Tee"}\n', "row without title or text"),
}


@pytest.mark.parametrize(
    "name, content, told", WITHOUT_ENTRIES.values(), ids=WITHOUT_ENTRIES
)
def test_a_corpus_without_an_entry_says_what_its_files_are(tmp_path, name, content, told):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / name).write_bytes(content)
    (corpus / "en.jsonl").touch()
    with pytest.raises(CorpusError) as e:
        mine_corpus(corpus, tmp_path / "run", jobs=1)
    assert told in str(e.value)
    assert f"{name} " in str(e.value)
    assert "\n" not in str(e.value)


def test_a_parquet_corpus_without_an_entry(tmp_path):
    folder = tmp_path / "corpus" / "de"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"name": ["Tee"]}), folder / "00000.parquet")
    with pytest.raises(
        CorpusError, match="no row with a title or a text.*1 × row without"
    ):
        mine_corpus(tmp_path / "corpus", tmp_path / "run", jobs=1)


def test_a_language_without_an_entry_is_named_and_counted(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    write(corpus / "de.jsonl", ["[1]", "[2]"])
    write(corpus / "en.jsonl", [{"title": "Only", "text": "One entry."}])
    mine_corpus(corpus, tmp_path / "run", jobs=1, quiet=False)
    told = capsys.readouterr().err
    assert "Careful: no entry in de: " in told
    assert "2 × row is no object" in told
    assert read_record(tmp_path / "run")["skipped"] == {"row is no object": 2}


def test_a_language_that_lost_most_rows_is_named(tmp_path, capsys):
    "Of an array with a line for each object only the last line is an object."
    corpus = tmp_path / "corpus"
    write(corpus / "de.jsonl", ["[", f"{ROW},", f"{ROW},", ROW, "]"])
    write(corpus / "en.jsonl", [{"title": "Only", "text": "One entry."}, "{broken"])
    mine_corpus(corpus, tmp_path / "run", jobs=1, quiet=False)
    told = capsys.readouterr().err
    assert "Careful: most rows are lost of de: " in told
    assert "is a JSON array: give one object a line" in told
    assert "lost of en" not in told


@pytest.mark.parametrize("projection", ["center", "lir"])
def test_a_projection_of_a_language_whose_entries_are_all_pruned(tmp_path, projection):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    shutil.copy(SAMPLE / "ja.jsonl", corpus)
    write(corpus / "de.jsonl", [{"title": "1987", "text": "Ein Jahr."}])
    write(corpus / "en.jsonl", [])
    params = Params.of(projection=projection)
    assert len(mine_corpus(corpus, tmp_path / "run", params, jobs=1)) == 0
    assert "warning" in read_record(tmp_path / "run")["control"]


def test_one_language_is_not_enough(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    shutil.copy(SAMPLE / "ja.jsonl", corpus)
    mine_corpus(corpus, tmp_path / "run", jobs=1, quiet=False)
    assert "one language only, ja" in capsys.readouterr().err
    assert "second language" in read_record(tmp_path / "run")["control"]["warning"]


@pytest.mark.parametrize("value", [float("nan"), 0.0, 1.0])
def test_an_encoder_with_useless_vectors_ends_the_run(tiny, tmp_path, monkeypatch, value):
    encoder = load_encoder(str(tiny))
    encoder.model.encode = lambda texts, **options: np.full((len(texts), 16), value)
    monkeypatch.setattr(pipeline, "cached_encoder", lambda *_: encoder)
    with pytest.raises(RunError, match="the encoder .*model' gives .*first for"):
        mine_corpus(SAMPLE, tmp_path / "run", Params.of(encoder=str(tiny)), jobs=1)
    assert not (tmp_path / "run" / "culture_points.parquet").exists()


# ---- one run at a time in a folder


def test_a_second_run_in_a_folder_is_told_who_is_there(reference, tmp_path):
    run = tmp_path / "run"
    command = [COMMAND, "mine", str(SAMPLE), "--out", str(run), "--jobs", "1"]
    first = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while first.poll() is None and not (run / "work" / "read").is_dir():
        time.sleep(0.01)
    second = cmining(*command[1:])
    assert second.returncode == 2
    assert f"is in use by process {first.pid} on " in second.stderr
    with pytest.raises(RunError, match=f"in use by process {first.pid} "):
        mine_corpus(SAMPLE, tmp_path / "other", jobs=1, work=run)
    assert first.wait(300) == 0, first.stderr.read()
    assert points_of(run) == points_of(reference)
    assert not (run / "work" / ".lock").exists()


def test_the_lock_of_a_killed_run_is_taken_over(reference, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    killed = {"host": socket.gethostname(), "pid": os.getpid(), "began": 0}
    (run / "work" / ".lock").write_text(json.dumps(killed))
    mine_corpus(SAMPLE, run, jobs=1)
    assert points_of(run) == points_of(reference)


def test_truncated_gzip_keeps_what_is_whole(tmp_path):
    rows = (SAMPLE / "en.jsonl").read_text(encoding="utf-8").splitlines()
    path = write(tmp_path / "corpus" / "en.jsonl.gz", rows)
    path.write_bytes(path.read_bytes()[:-2000])
    mine_corpus(tmp_path / "corpus", tmp_path / "run", jobs=1)
    assert 0 < len(read_run(tmp_path / "run", "entries")) < len(rows)
    assert read_record(tmp_path / "run")["skipped"]


MISTAKES = {
    "no such corpus": (["mine", "nowhere", "--out", "run"], "nowhere"),
    "a file, not a folder": (["mine", "file.txt", "--out", "run"], "file.txt"),
    "a folder that is no corpus": (["mine", "empty", "--out", "run"], "empty"),
    "the output is a file": (["mine", "SAMPLE", "--out", "file.txt"], "file.txt"),
    "the output cannot be made": (
        ["mine", "SAMPLE", "--out", "file.txt/run"],
        "file.txt",
    ),
    "the output holds other files": (
        ["mine", "SAMPLE", "--out", "documents"],
        "documents",
    ),
    "a parameter out of range": (
        ["mine", "SAMPLE", "--out", "run", "--theta", "8"],
        "theta",
    ),
    "an unknown parameter": (
        ["mine", "SAMPLE", "--out", "run", "--thetta", "1"],
        "thetta",
    ),
    "an unknown encoder": (
        ["mine", "SAMPLE", "--out", "run", "--encoder", "no/such/model"],
        "no/such/model",
    ),
    "an unknown spaCy model": (
        ["mine", "SAMPLE", "--out", "run", "--ner", "xx_no_model"],
        "xx_no_model",
    ),
    "explain without a run": (["explain", "empty", "Tea"], "empty"),
    "ingest without a source": (
        ["ingest", "nowhere.xml", "--out", "corpus"],
        "nowhere.xml",
    ),
}


@pytest.mark.parametrize("args, named", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_clear_line(tmp_path, args, named):
    (tmp_path / "file.txt").write_text("no corpus")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "documents" / "thesis.tex", ["mine"])
    args = [str(SAMPLE) if a == "SAMPLE" else a for a in args]
    done = cmining(*args, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert named in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "documents" / "thesis.tex").exists()


def test_a_folder_of_others_is_left_alone(tmp_path):
    "Having a work/ of its own does not make a folder a run, not even with --clean."
    notes = tmp_path / "thesis" / "work" / "drafts" / ".notes"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    done = cmining("mine", SAMPLE, "--out", tmp_path / "thesis", "--clean")
    assert (
        done.returncode == 2
        and "holds other files" in done.stderr
        and notes.read_text() == "mine"
    )


def test_a_cleaned_run_can_be_made_again(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "work")
    mine_corpus(SAMPLE, tmp_path / "run", jobs=1)
    assert points_of(tmp_path / "run") == points_of(reference)


def test_run_of_another_shape_is_refused():
    with pytest.raises(RunError, match="unknown parameter"):
        Params.of(n_group=3)
