"""Files, records and settings of every wrong kind, in every place where a command reads one."""

import contextlib
import copy
import gzip
import io
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmining.cli import main
from cmining.core.runs import read_run
from cmining.instruct.synthesize import synthesize_offline
from cmining.mine.pipeline import mine_corpus

SAMPLE = Path(__file__).parent.parent / "data" / "sample"


def parquet_bytes(**columns) -> bytes:
    "A Parquet file of these columns."
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


CONTENTS = {
    "empty": b"",
    "space": b" \n",
    "null": b"null\n",
    "number": b"7\n",
    "array": b"[1, 2]\n",
    "object": b"{}\n",
    "deep array": b"[" * 100_000,
    "deep object": b'{"a":' * 50_000,
    "cut": b'{"title": "Te',
    "binary": bytes(range(256)) * 4,
    "nul": b"\0" * 100,
    "BOM": b"\xef\xbb\xbf{}\r\n{}\r\n",
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\nsize 12\n",
    "long number": b'{"title":1' + b"0" * 5000 + b"}\n",
    "gzip": gzip.compress(b"{}\n"),
    "another table": parquet_bytes(a=[1], b=[[2.5]]),
    "no rows": parquet_bytes(title=pa.array([], pa.string())),
    "Parquet's marks": b"PAR1" + b"\0" * 20 + b"PAR1",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a run of the sample and items of it."
    place = tmp_path_factory.mktemp("place")
    mine_corpus(SAMPLE, place / "run", jobs=1)
    synthesize_offline(place / "run", place / "items")
    return place


def end_of(*args) -> tuple[int | None, str]:
    "The exit code of a command line, None for a traceback, and what it says on stderr."
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        try:
            code = main(list(map(str, args)))
        except SystemExit as e:
            code = e.code
        except Exception as e:
            return None, repr(e)
    return code, told.getvalue()


class Wrong(list):
    "The command lines that did not end as they should; `count` says how many were tried."

    count = 0

    def expect(self, name: str, *args, codes: tuple[int, ...] = (2,)) -> None:
        self.count += 1
        code, told = end_of(*args)
        last = told.rstrip("\n").rpartition("\n")[2]
        is_told = code != 2 or last.startswith("cmining") and "Traceback" not in told
        if code not in codes or not is_told:
            self.append((name, args, code, told[-500:]))

    def check(self, least: int) -> None:
        assert not self, "\n".join(map(str, self))
        assert self.count >= least, self.count


def test_sources_and_corpora(tmp_path):
    wrong = Wrong()
    suffixes = (".jsonl", ".jsonl.gz", ".parquet", ".xml", ".xml.gz", ".xml.bz2")
    for i, (name, data) in enumerate(CONTENTS.items()):
        for suffix in suffixes:
            source = tmp_path / f"{i}{suffix}"
            source.write_bytes(data)
            out = tmp_path / f"out-{i}"
            line = ("ingest", source, "--out", out, "--lang", "de")
            # a title alone is an entry, though one without a text
            codes = (0, 2) if name == "long number" else (2,)
            wrong.expect(f"{name}{suffix}", *line, codes=codes)
            assert not list(out.glob("*/*.parquet"))
        for suffix in suffixes[:3]:
            corpus = tmp_path / f"corpus-{i}{suffix}"
            (corpus / "de").mkdir(parents=True)
            (corpus / "de" / f"0{suffix}").write_bytes(data)
            line = ("sweep", corpus, "--theta", "2", "--out", tmp_path / "sweep")
            wrong.expect(f"{name}{suffix} in a corpus", *line)
    wrong.check(170)


def test_records_and_tables_of_a_run(place, tmp_path):
    wrong = Wrong()
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    explain = ("explain", run, "Fallas")
    group = ("explain", run, "--group", "1")
    cost = ("cost", run, "--core-hour", "1")
    atlas = ("atlas", run, "--out", tmp_path / "atlas.html")
    offline = ("synthesize", run, "--offline", "--out", tmp_path / "items")
    record = (run / "run.json").read_bytes()
    for name, data in CONTENTS.items():
        (run / "run.json").write_bytes(data)
        for line in (explain, cost, atlas):
            wrong.expect(f"run.json: {name}", *line)
    (run / "run.json").write_bytes(record)
    for table in ("entries", "groups", "culture_points"):
        for data in CONTENTS.values():
            (run / f"{table}.parquet").write_bytes(data)
            readers = {
                "entries": (explain, atlas),
                "groups": (group,),
                "culture_points": (group, offline),
            }
            for line in readers[table]:
                wrong.expect(f"{table}.parquet", *line)
        shutil.copy(place / "run" / f"{table}.parquet", run)
    wrong.check(130)


def mutations(record: dict) -> list[tuple[str, dict]]:
    "A record with one value of it gone, or of another kind."
    paths = [(key,) for key in record]
    paths += [("params", name) for name in record["params"]]
    paths += [("counts", "de"), ("vectors", "de"), ("entries", "de"), ("steps", 0)]
    paths += [("steps", 0, "seconds"), ("steps", 0, "tasks"), ("encoder", "name")]
    mutated = []
    for path in paths:
        for value in ("gone", None, "x", [7]):
            changed = copy.deepcopy(record)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            if value == "gone":
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
            mutated.append((f"{path} {value}", changed))
    return mutated


def test_records_with_one_wrong_value(place, tmp_path):
    wrong = Wrong()
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    record = json.loads((run / "run.json").read_text("utf-8"))
    lines = (("explain", run, "--group", "1"), ("cost", run, "--core-hour", "1"))
    for name, changed in mutations(record):
        (run / "run.json").write_text(json.dumps(changed))
        for line in lines:
            # what a command does not need may be wrong
            wrong.expect(name, *line, codes=(0, 2))
    wrong.check(350)


def test_broken_work_of_a_run(place, tmp_path):
    wrong = Wrong()
    for kind in ("entries", "vectors", "candidates", "kept"):
        for data in (None, b"", b"x" * 200):
            run = tmp_path / "run"
            shutil.copytree(place / "run", run)
            for file in (run / "work" / kind).rglob("*"):
                if file.is_file():
                    file.unlink() if data is None else file.write_bytes(data)
            lines = [
                ("explain", run, "Fallas"),
                (
                    "synthesize",
                    run,
                    "--offline",
                    "--out",
                    tmp_path / kind,
                    "--limit",
                    "1",
                ),
            ]
            if kind == "vectors":  # else the whole map is drawn first
                lines.append(("atlas", run, "--out", tmp_path / "atlas.html"))
            for line in lines:
                wrong.expect(f"{kind} {data}", *line, codes=(0, 2))
            shutil.rmtree(run)
    wrong.check(27)


def test_items_prices_benchmarks_and_labels(place, tmp_path):
    wrong = Wrong()
    sound = (place / "items" / "items-00000.jsonl").read_bytes().splitlines(True)[0]
    settings = ("--model", "some-model", "--dry-run", "--prices")
    for i, (name, data) in enumerate(CONTENTS.items()):
        dataset = tmp_path / f"items-{i}"
        dataset.mkdir()
        export = ("export", dataset, "--format", "trl", "--validation=0", "--test=0")
        (dataset / "items-00000.jsonl").write_bytes(data)
        wrong.expect(f"items: {name}", *export)
        (dataset / "items-00000.jsonl").write_bytes(sound + data)
        wrong.expect(f"items and {name}", *export, codes=(0,) if not data else (2,))
        prices = tmp_path / f"prices-{i}.json"
        prices.write_bytes(data)
        plan = (
            "synthesize",
            place / "run",
            "--out",
            tmp_path / "made",
            *settings,
            prices,
        )
        wrong.expect(f"prices: {name}", *plan)
        offline = ("synthesize", place / "run", "--out", tmp_path / "made", "--offline")
        wrong.expect(f"benchmark: {name}", *offline, "--against", prices)
        for suffix in (".csv", ".tsv", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zip"):
            labels = tmp_path / f"labels-{i}{suffix}"
            labels.write_bytes(data)
            sweep = ("sweep", SAMPLE, "--theta=1", "--out", tmp_path / "sweep")
            wrong.expect(f"labels: {name}{suffix}", *sweep, "--labels", labels)
    for models in (
        [1],
        {"m": 1},
        {"m": {"in": "x", "out": 1}},
        {"m": {"in": -1, "out": 1}},
    ):
        prices.write_text(json.dumps({"models": models}))
        wrong.expect(f"prices: {models}", *plan)
    assert not (tmp_path / "sweep").exists()
    wrong.check(190)


NO_ADDRESSES = [
    "x",
    " ",
    "http://",
    "ftp://a/v1",
    "http://[::1",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:x",
    "http://a b",
    "file:///etc",
    "http://\x01",
]
NO_KEYS = [
    "“sk-x”",
    "sk x",
    '"sk-abc"',
    "'sk'",
    "sk\tx",
    "sk-\x7f",
    "é",
    "\udce9",
    "a\nb",
]


def test_variables_of_the_environment(place, tmp_path, monkeypatch):
    wrong = Wrong()
    ask = ("synthesize", place / "run", "--out", tmp_path / "made", "--model", "m")
    ingest = ("ingest", "wikipedia:de", "--out", tmp_path / "new")
    ingest += ("--downloads", tmp_path / "new")

    def expect(name, value, *line, codes=(2,)):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            wrong.expect(f"{name}={value!r}", *line, codes=codes)

    for address in NO_ADDRESSES:
        expect("OPENAI_BASE_URL", address, *ask)
        expect("HF_ENDPOINT", address, *ingest)
        expect("CMINING_DUMPS_URL", address, *ingest, "--source", "xml")
    long_name = f"http://{'a' * 80}.invalid"
    expect("HF_ENDPOINT", long_name, *ingest)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    for key in NO_KEYS:
        expect("OPENAI_API_KEY", key, *ask)
    for proxy in ("://", "socks9://a:1"):
        expect("ALL_PROXY", proxy, *ask)
    for columns in ("x", "0", "-1", "1", "99999999"):
        expect("COLUMNS", columns, "explain", place / "run", "Fallas", codes=(0,))
    for number in ("x", "2.5", ""):
        expect("LOKY_MAX_CPU_COUNT", number, "mine", SAMPLE, "--out", tmp_path / "mined")
    for name in ("TMPDIR", "HOME"):
        expect(name, "/nowhere", "explain", place / "run", "Fallas", codes=(0,))
    wrong.check(50)
    assert os.environ["OPENAI_BASE_URL"]  # what was changed is as it was


def test_a_sound_run_is_read(place):
    assert len(read_run(place / "run", "entries")) > 1000
    assert end_of("explain", place / "run", "Fallas")[0] == 0


@pytest.mark.parametrize("title", ["Fallas", " fallas ", "Fallas\n", "\u200eFallas"])
def test_a_title_is_found_as_it_was_copied(place, title):
    assert end_of("explain", place / "run", title)[0] == 0


def test_a_dataset_that_was_exported_is_gone_on_with(place, tmp_path):
    shutil.copytree(place / "items", tmp_path / "items")
    assert end_of("export", tmp_path / "items", "--format", "trl")[0] == 0
    offline = ("--out", tmp_path / "items", "--offline", "--limit", "30")
    assert end_of("synthesize", place / "run", *offline)[0] == 0
    assert (tmp_path / "items" / "trl" / "export.json").is_file()


def test_a_folder_of_somebody_who_is_not_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, told = end_of("mine", SAMPLE, "--out=~nobody-of-this-name/run")
    assert code == 2
    assert "./~nobody-of-this-name/run" in told
    assert not list(tmp_path.iterdir())
