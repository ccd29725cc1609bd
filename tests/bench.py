"""Speed and memory against size, beside the plain way of doing the same, in one run: `make bench`.

Corpora of any size are drawn from the real articles in ../shared/data/wiki (from the bundled sample where they are
absent): an entry takes its paragraphs from two articles of its language, shuffled, up to a length whose mean is about
500 tokens. Writes reports/bench/bench.json, and the notebook nbs/experiments/bench.ipynb executed on it.

    python tests/bench.py                 10,000 to 300,000 entries, and the comparison at 100,000
    python tests/bench.py --full          a million as well
    python tests/bench.py --sizes 3000    these sizes only; the others keep what was measured of them before
"""

import argparse
import json
import math
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cmining.core.runs import read_record
from cmining.ingest.corpus import corpus_files, read_entries

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data" / "wiki"
REPORT = ROOT / "reports" / "bench"
# of eight, as in the paper: English 3 M, the others 1 M
SHARE = {"en": 3, "de": 1, "es": 1, "fr": 1, "ja": 1, "zh": 1}
CHARACTERS = {"ja": 1000, "zh": 840}  # of a mean entry; 2,350 in the others
COMMAND = str(Path(sys.executable).parent / "cmining")


def make_corpus(n: int, out: Path, seed: int = 0) -> int:
    "Write n entries as Parquet files of 25,000; returns their characters."
    rng = random.Random(seed)
    characters = 0
    source = corpus_files(REAL if REAL.is_dir() else ROOT / "data" / "sample")
    for lang, share in SHARE.items():
        articles = [
            e
            for f in source[lang]
            for e in read_entries(f, lang, Counter())
            if e["paragraphs"]
        ]
        (out / lang).mkdir(parents=True)
        rows = []
        wanted = n * share // 8
        for i in range(wanted):
            a = rng.choice(articles)
            b = rng.choice(articles)
            pool = a["paragraphs"] + b["paragraphs"]
            rng.shuffle(pool)
            limit = rng.lognormvariate(-0.3, 0.8) * CHARACTERS.get(lang, 2350)
            text = []
            while pool and (not text or sum(map(len, text)) < limit):
                text.append(pool.pop())
            rows.append(
                {"title": f"{a['title']} {b['title']} {i}", "text": "\n\n".join(text)}
            )
            characters += len(rows[-1]["text"])
            if len(rows) == 25_000 or i == wanted - 1:
                pq.write_table(
                    pa.Table.from_pylist(rows),
                    out / lang / f"{i // 25_000:05}.parquet",
                    compression="zstd",
                )
                rows = []
    return characters


def watch(command: list) -> dict:
    """Run a command; its seconds, CPU seconds, and the peak of the memory that it and its
    children have between them (PSS).
    """
    start = time.perf_counter()
    peak = 0
    cpu = {}
    # a pipe that nobody reads would hold up a command that says much
    told = tempfile.TemporaryFile()
    process = psutil.Popen(
        [str(c) for c in command], stdout=subprocess.DEVNULL, stderr=told
    )
    while process.poll() is None:
        total = 0
        try:
            tree = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for p in tree:
            try:
                total += p.memory_full_info().pss
                cpu[p.pid] = sum(p.cpu_times()[:2])
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                pass
        peak = max(peak, total)
        time.sleep(0.25)
    if process.wait():
        told.seek(0)
        sys.exit(told.read().decode())
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(sum(cpu.values()), 1),
        "peak_mib": mib(peak),
    }


def mib(n: int) -> int:
    return round(n / 2**20)


def ours(corpus: Path, run: Path, *options) -> dict:
    told = watch([COMMAND, "mine", corpus, "--out", run, *options])
    record = read_record(run)
    return {
        **told,
        "peaks": {s["step"]: mib(s["peak_memory_bytes"]) for s in record["steps"]},
        "steps": {s["step"]: s["seconds"] for s in record["steps"]},
        "culture_points": record["culture_points"],
        "disk_mib": mib(sum(f.stat().st_size for f in run.rglob("*") if f.is_file())),
        "plan": {k: record["plan"][k] for k in ("seconds", "memory_bytes", "disk_bytes")},
    }


def slope(rows: list[dict]) -> float | None:
    "Least-squares slope of seconds against entries, both as logarithms."
    if len(rows) < 2:
        return None
    x = [math.log(r["entries"]) for r in rows]
    y = [math.log(r["seconds"]) for r in rows]
    mx = sum(x) / len(x)
    my = sum(y) / len(y)
    return round(
        sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x), 3
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="a million entries as well")
    parser.add_argument("--sizes", type=int, nargs="*", help="these sizes only")
    parser.add_argument(
        "--compare",
        type=int,
        default=100_000,
        help="size of the comparison with the plain pipeline; 0 for none",
    )
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args()
    sizes = options.sizes or [
        10_000,
        30_000,
        100_000,
        300_000,
        *([1_000_000] if options.full else []),
    ]
    here = {
        "cores": psutil.cpu_count(),
        "python": platform.python_version(),
        "real": REAL.is_dir(),
    }
    before = (
        json.loads((options.out / "bench.json").read_text())
        if (options.out / "bench.json").exists()
        else {}
    )
    result = {"ours": [], **(before if before.items() >= here.items() else here)}
    for n in sizes:
        with tempfile.TemporaryDirectory() as d:
            characters = make_corpus(n, Path(d) / "corpus")
            row = {
                "entries": n,
                "characters": characters,
                "date": date.today().isoformat(),
                **ours(Path(d) / "corpus", Path(d) / "run"),
            }
            result["ours"] = sorted(
                [r for r in result["ours"] if r["entries"] != n] + [row],
                key=lambda r: r["entries"],
            )
            print(json.dumps(row), flush=True)
            if n == options.compare:
                # what the plain one does: Stage 2 once, and nothing asked of single
                # entries
                one = ours(
                    Path(d) / "corpus",
                    Path(d) / "once",
                    "--n-repeats",
                    "1",
                    "--no-balanced",
                    "--counterparts",
                    "keep",
                )
                plain = watch(
                    [
                        sys.executable,
                        ROOT / "tests" / "plain_pipeline.py",
                        Path(d) / "corpus",
                        Path(d) / "plain.json",
                    ]
                )
                watch(
                    [
                        sys.executable,
                        ROOT / "tests" / "plain_pipeline.py",
                        Path(d) / "corpus",
                        Path(d) / "same.json",
                        "--centers-of",
                        Path(d) / "once",
                    ]
                )
                told = {
                    name: json.loads((Path(d) / f"{name}.json").read_text())
                    for name in ("plain", "same")
                }
                result["comparison"] = {
                    "entries": n,
                    "date": row["date"],
                    "ours": one,
                    "plain": {**plain, **told["plain"]},
                    "ratio": round(plain["seconds"] / one["seconds"], 2),
                    "jaccard_with_the_same_centres": told["same"]["jaccard"],
                }
                print(json.dumps(result["comparison"]), flush=True)
    result["slope"] = slope(result["ours"])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    notebook = ROOT / "nbs" / "experiments" / "bench.ipynb"
    subprocess.run(
        [
            str(Path(COMMAND).parent / "papermill"),
            notebook,
            options.out / "bench.ipynb",
            "-p",
            "results",
            (options.out / "bench.json").resolve(),
            "--no-progress-bar",
        ],
        check=True,
    )
    print(f"slope {result['slope']}; everything is in {options.out}/")


if __name__ == "__main__":
    main()
