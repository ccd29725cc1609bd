"""The command line: whatever a user types, a mistake is exit code 2 and one line, never a traceback."""

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmining.cli import COMMANDS, build_parser, main
from cmining.commands.mine import explain_line
from cmining.instruct.synthesize import synthesize_offline
from cmining.mine.pipeline import mine_corpus

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
COMMAND = str(Path(sys.executable).parent / "cmining")
LATIN_1 = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a corpus, its run, items, and things that are none of these."
    place = tmp_path_factory.mktemp("place")
    mine_corpus(SAMPLE, place / "run", jobs=1)
    synthesize_offline(place / "run", place / "items")
    corpus = place / "corpus"
    corpus.mkdir()
    for lang in ("de", "en"):
        lines = (SAMPLE / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines()
        (corpus / f"{lang}.jsonl").write_text("\n".join(lines[:30]), encoding="utf-8")
    (place / "empty").mkdir()
    (place / "file").write_text("no corpus, no run, no table")
    (place / "binary.csv").write_bytes(bytes(range(256)))
    (place / "columns.csv").write_text("identifier,language\nx,de\n")
    (place / "latin.csv").write_bytes(
        "lang,title,kind\nde,Käse,culture\n".encode("latin-1")
    )
    (place / "rows.csv").write_text("lang,title,kind\n")
    (place / "documents").mkdir()
    (place / "documents" / "thesis.tex").write_text("mine")
    (place / "arrays").mkdir()
    (place / "arrays" / "de.jsonl").write_text('[{"title": "Tee", "text": "gut"}]')
    for broken in ("cut", "edited"):
        shutil.copytree(place / "run", place / broken)
    for table in ("entries", "groups", "culture_points"):
        path = place / "cut" / f"{table}.parquet"
        path.write_bytes(path.read_bytes()[:-100])
    (place / "edited" / "run.json").write_text('{"params": {')
    return place


def end_of(args, capsys) -> tuple[int, str]:
    "The exit code of a command line, and what it says on stderr."
    capsys.readouterr()
    try:
        code = main(list(args))
    except SystemExit as e:
        code = e.code
    return code, capsys.readouterr().err


BAD_OUT = ["", "file", "file/below", "run\0", LATIN_1, "documents"]
BAD_RUNS = ["", "nowhere", "file", "empty", "cut", "edited", "run\0", LATIN_1, "x" * 300]
BAD_NUMBERS = ["", "nan", "inf", "-1", "x", "1e999", "9" * 5000, LATIN_1, "½"]
BAD_PARAMS = {
    "theta": ["1.5", "-0.1", "nan", "inf", "x", "", "0,7"],
    "tau": ["0", "-1", "2.5", "x", str(10**30)],
    "seed": ["-1", "4294967295", str(2**31), "99999999999999999999", "1e3"],
    "n-groups": ["0", "-1", "nan", str(10**30)],
    "n-domains": ["0", "-3", str(2**40)],
    "k-neighbors": ["0"],
    "n-repeats": ["0"],
    "n-paragraphs": ["0"],
    "max-paragraphs": ["0"],
    "density-quantile": ["2", "nan"],
    "entropy-keep": ["-1", "nan"],
    "max-q": ["7", "-1", "nan"],
    "clusterer": ["dbscan", ""],
    "counterparts": ["maybe"],
    "preset": ["papers"],
    "jobs": ["0", "-3", "x", "nan"],
    "backend": ["spark"],
    "address": ["tcp://127.0.0.1:1"],
    "encoder": ["", "./nowhere", "empty", "~nobody/model"],
    "ner": ["nowhere"],
    "thetta": ["1"],
}


def mistakes() -> list[list[str]]:
    "Command lines of every command that can end in one way only."
    mine = ["mine", "corpus", "--out"]
    sweep = ["sweep", "corpus", "--out", "sweep"]
    export = ["export", "items", "--format", "trl", "--out", "exported"]
    offline = ["synthesize", "run", "--offline", "--out", "made"]
    lines = [[], ["min"], ["mine"], ["mine", "corpus"], ["--nothing"], [LATIN_1]]
    lines += [[*mine, out] for out in BAD_OUT]
    bad_corpora = [
        "",
        "nowhere",
        "file",
        "empty",
        "documents",
        "arrays",
        "nowhere://corpus",
    ]
    lines += [["mine", corpus, "--out", "new"] for corpus in bad_corpora]
    for name, values in BAD_PARAMS.items():
        lines += [[*mine, "new", f"--{name}={value}"] for value in values]
        if name not in ("backend", "address", "encoder", "ner"):
            lines += [[*sweep, f"--{name}={value}"] for value in values]
    lines += [["sweep", corpus, "--theta=1", "--out", "new"] for corpus in bad_corpora]
    lines += [
        ["sweep", "corpus", "--theta=1", "--out", o] for o in ("", "file", "s3://b/s")
    ]
    tables = [
        "nowhere.csv",
        "binary.csv",
        "columns.csv",
        "latin.csv",
        "rows.csv",
        "empty",
    ]
    lines += [[*sweep, "--theta=1", "--labels", table] for table in [*tables, ""]]
    grids = ["--theta=0.6,,0.8", "--theta=0.6,0.60", "--balanced=maybe", "--tau=none"]
    lines += [[*sweep, grid] for grid in grids] + [sweep]
    for run in BAD_RUNS:
        lines += [
            ["explain", run, "Tea"],
            ["explain", run, "--group", "1"],
            ["atlas", run, "--out", "page.html"],
            ["synthesize", run, "--out", "made", "--offline"],
        ]
        if run != "cut":  # its run.json is whole, and some figures need no more
            lines += [
                ["cost", run, "--core-hour", "1"],
                ["report", run, "--out", "pages"],
            ]
    lines += [["explain", "run", title] for title in ("xyzzy", LATIN_1, "\ud83d")]
    lines += [["explain", "run"], ["explain", "run", "Fallas", "--group", "1"]]
    lines += [["explain", "run", f"--group={n}"] for n in [*BAD_NUMBERS, "99999"]]
    lines += [["explain", "run", "Fallas", "--lang", lang] for lang in ("xx", LATIN_1)]
    lines += [
        ["atlas", "run", "--out", out] for out in (".", "..", "/", "", "empty", "~")
    ]
    lines += [
        ["atlas", "run", "--out", out] for out in ("file/a.html", LATIN_1, "s3://b/a")
    ]
    lines += [
        ["atlas", "run", "--out", "a.html", f"--limit={n}"] for n in ("0", "-5", "x")
    ]
    for share in ("nan", "inf", "-1", "2", "x", ""):
        lines += [[*export, f"--validation={share}"], [*export, f"--test={share}"]]
    lines += [[*export, f"--gpus={n}"] for n in ("0", "-1", "3", "nan")]
    lines += [["export", d, "--format", "trl"] for d in ("", "nowhere", "file", "empty")]
    lines += [["export", "items", "--format", "nothing"], [*export[:-1], "documents"]]
    lines += [[*offline, f"--limit={n}"] for n in ("0", "-1", "nan", "x", str(10**30))]
    lines += [
        [*offline, "--tasks", "essay"],
        [*offline, "--tasks="],
        [*offline[:-1], "file"],
    ]
    lines += [[*offline, "--model", "m"], [*offline, "--dry-run"], offline[:2]]
    lines += [[*offline, "--against", path] for path in ("nowhere.jsonl", "empty")]
    lines += [["cost", "run", f"--core-hour={usd}"] for usd in ("nan", "x", "inf")]
    lines += [
        ["ingest", source, "--out", "new"] for source in ("", "nowhere.xml", LATIN_1)
    ]
    lines += [["ingest", "corpus/de.jsonl", "--out", out] for out in ("file", "")]
    lines += [["ingest", "corpus/de.jsonl", "--out", "new", "--lang", "Deutsch"]]
    lines += [[*mine, "new", "--clusterer=hdbscan", "--tau=1"]]
    for option, n in itertools.product(
        ("--sample", "--jobs", "--max-paragraphs"), "0 -1".split()
    ):
        lines += [["ingest", "corpus/de.jsonl", "--out", "new", f"{option}={n}"]]
    numbers = ("--sample", "--jobs", "--max-paragraphs", "--seed")
    for option, n in itertools.product(numbers, ("x", "nan", "2.5", str(10**30))):
        lines += [["ingest", "corpus/de.jsonl", "--out", "new", f"{option}={n}"]]
    lines += [["new-notebook", name] for name in ("", "file", LATIN_1, "file/a.ipynb")]
    lines += [["hold-out", run, "--out", "made/h.jsonl"] for run in BAD_RUNS]
    hold_out = ["hold-out", "run", "--out", "made/h.jsonl"]
    lines += [[*hold_out, f"--share={n}"] for n in ("0", "1", "-1", "nan", "x")]
    lines += [[*hold_out, "--titles", path] for path in ("nowhere", "file", "empty")]
    evaluate = ["evaluate", "empty", "--out", "made", "--data", "empty", "--tasks"]
    lines += [evaluate[:-1], [*evaluate, ""], [*evaluate, "trivia"], [*evaluate, "sage"]]
    return lines


def test_mistakes_are_one_line_and_leave_nothing(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted(path.name for path in place.iterdir())
    wrong = []
    for args in mistakes():
        try:
            code, told = end_of(args, capsys)
        except BaseException as e:
            wrong.append((args, repr(e)))
            continue
        last = told.rstrip("\n").rpartition("\n")[2]
        if code != 2 or not last.startswith("cmining") or "Traceback" in told:
            wrong.append((args, code, told))
    assert not wrong, "\n".join(map(str, wrong))
    assert len(mistakes()) > 250
    made = {path.name for path in place.iterdir()} - {*before}
    assert made <= {"new", "sweep", "made", "exported", "pages"}, made


# ---- what is right is taken


def test_values_of_every_kind_are_read():
    line = "mine ~/corpus --out=~/run --theta 0.5 --seed 3 --encoder some/model --jobs 2"
    options = build_parser().parse_args(shlex.split(line))
    assert options.corpus == Path.home() / "corpus"
    assert options.out == Path.home() / "run"
    assert (options.theta, options.seed, options.jobs) == (0.5, 3, 2)
    in_utf_8 = os.fsdecode("川".encode())  # as a locale without UTF-8 hands it over
    for title in ("川", in_utf_8, "-3 °C"):
        options = build_parser().parse_args(["explain", "run", "--", title])
        assert options.title in ("川", "-3 °C")


PATHS = {
    "ingest": ("--out=~/x", "--downloads=~/x", "~/x"),
    "mine": ("--out=~/x", "~/x"),
    "explain": ("~/x",),
    "sweep": ("--out=~/x", "--labels=~/x", "~/x"),
    "report": ("--out=~/x", "--labels=~/x", "--translations=~/x", "--figures=~/x", "~/x"),
    "atlas": ("--out=~/x", "~/x"),
    "new-notebook": ("~/x",),
    "synthesize": ("--out=~/x", "--prices=~/x", "~/x", "--against=~/x"),
    "export": ("--out=~/x", "--format=trl", "~/x"),
    "seeds": ("~/x", "--out=~/x"),
    "train": ("~/x", "--model=m", "--out=~/x"),
    "compare": ("~/x", "--out=~/x", "--datasets=~/x", "--against=~/x"),
    "hold-out": ("~/x", "--out=~/x", "--titles=~/x"),
    "evaluate": ("~/x", "--tasks=sage", "--data=~/x", "--out=~/x", "--adapter=~/x")
    + ("--prices=~/x",),
    "cost": ("~/x",),
    "annotate": ("sample", "~/x", "--out=~/x", "--checks=~/x"),
    "collect": ("merge", "~/x", "--out=~/x"),
    "collect web": ("~/x", "--out=~/x"),
    "align": ("lexical", "~/x", "--out=~/x", "--ratings=~/x", "--prices=~/x"),
}


@pytest.mark.parametrize("command", [*COMMANDS, "collect web"])
def test_the_home_folder_in_every_path(command):
    options = build_parser().parse_args([*command.split(), *PATHS[command]])
    values = [
        v for vs in vars(options).values() for v in (vs if type(vs) is list else [vs])
    ]
    assert not [value for value in values if "~" in str(value)]
    n_paths = sum("~" in arg for arg in PATHS[command])
    assert sum(str(value) == str(Path.home() / "x") for value in values) == n_paths


@pytest.mark.parametrize(
    "title", ["Tee", "土俵入り", "it's", 'a "b"', "$HOME", "`ls`", "-ismus"]
)
def test_the_printed_command_can_be_pasted(title):
    line = explain_line(Path("my run"), title, "de")
    options = build_parser().parse_args(shlex.split(line)[1:])
    assert (options.run, options.title, options.lang) == (Path("my run"), title, "de")


def test_help_lists_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as e:
        main(["--help"])
    assert e.value.code == 0
    told = capsys.readouterr().out
    for code in ("  0 ", "  1 ", "  2 ", "  130 ", "  141 "):
        assert code in told


# ---- in a process of its own


def test_output_that_is_cut_off_ends_quietly(place):
    commands = [
        "explain run Fallas --json",
        "explain run Fallas",
        "--help",
        "mine --help",
    ]
    for line, unbuffered in itertools.product(commands, ("", "1")):
        process = subprocess.Popen(
            [COMMAND, *line.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=place,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
        process.stdout.close()
        assert process.stderr.read() == b""
        # argparse ignores a pipe that is closed before its help
        assert process.wait() in ((0, 141) if "--help" in line else (141,))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_finds_no_space_is_told(place):
    with open("/dev/full", "w") as full:
        command = [COMMAND, "explain", "run", "Fallas"]
        done = subprocess.run(command, cwd=place, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"No space left" in done.stderr


# The command, and an empty line when its own code has begun: its first import is argparse. What
# comes before is Python's start, and takes as long as the machine is busy.
START = """
import sys

class Begun:
    def find_spec(name, path=None, target=None):
        if name == "argparse":
            sys.meta_path.remove(Begun)
            print(flush=True)

sys.meta_path.insert(0, Begun)
from cmining.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("seconds", [0, 0.03, 0.1, 0.3, 0.6, 1, 1.5, 2, 3])
def test_ctrl_c_shows_no_traceback(place, tmp_path, seconds):
    line = ["mine", SAMPLE, "--out", tmp_path / "run", "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", START, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline()
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers as well
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("cmining: interrupted")


def test_a_second_sweep_in_a_folder_is_told_who_is_there(place, tmp_path):
    command = [
        COMMAND,
        "sweep",
        "corpus",
        "--theta",
        "0.6,0.8",
        "--out",
        tmp_path / "sweep",
    ]
    first = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL)
    while first.poll() is None and not (tmp_path / "sweep" / ".lock").exists():
        time.sleep(0.01)
    second = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert second.returncode == 2
    assert f"in use by process {first.pid} on " in second.stderr
    assert first.wait(120) == 0
    assert not (tmp_path / "sweep" / ".lock").exists()


def test_a_locale_without_utf_8(place):
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [COMMAND, "explain", "run", "土俵入り".encode()]
    done = subprocess.run(
        command, cwd=place, env={**os.environ, **bare}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
