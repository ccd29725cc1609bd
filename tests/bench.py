"""Speed and memory, each figure beside the plain way of doing the same in the same run: `make bench`.

With real articles in ../shared/data/wiki it measures on them, otherwise on the bundled sample.
"""
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np

from cmining.corpus import corpus_files, read_entries
from cmining.encode import load_encoder
from cmining.pipeline import read_record
from cmining.prune import functional_ruler, prune_reasons
from cmining.refine import dispersion, entropy

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data" / "wiki"
CORPUS = REAL if REAL.is_dir() else ROOT / "data" / "sample"


def seconds(function, *args, repeat: int = 3) -> float:
    "The best of a few runs."
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        function(*args)
        best = min(best, time.perf_counter() - start)
    return best


def row(what: str, fast: float, unit: str, plain: float | None = None, than: str = "") -> None:
    ratio = f"{fast / plain:8.1f} × {than}" if plain else ""
    print(f"{what:<34}{fast:14,.0f} {unit:<12}{ratio}", flush=True)


def naive_dispersion(x, k=5):
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return np.sort(distance, axis=1)[:, :k].mean(1)


def naive_entropy(v):
    n, total = len(v), 0.
    for i in range(n):
        r = [1. if i == j else max(float(v[i] @ v[j]), 0.) for j in range(n)]
        total -= sum(s / sum(r) * np.log(s / sum(r)) for s in r if s > 0)
    return total / n


def main() -> None:
    print(f"corpus: {CORPUS}")
    files = corpus_files(CORPUS)
    entries = [e for lang, same in files.items() for f in same for e in islice(read_entries(f, lang, Counter()), 300)]
    encoder, rng = load_encoder(), np.random.default_rng(0)

    paragraphs = [p for e in entries for p in e["paragraphs"]][:8000]
    tokens = sum(len(encoder.tokenizer.encode(p).ids) for p in paragraphs)
    one_by_one = seconds(lambda: [encoder.encode([p]) for p in paragraphs], repeat=1)
    row("encode paragraphs, one thread", tokens / seconds(encoder.encode, paragraphs), "tokens/s", tokens / one_by_one, "one text at a time")

    titles = [e["title"] for e in entries]
    ruler = functional_ruler("en")
    row("prune titles", len(titles) / seconds(prune_reasons, titles, "en"), "titles/s", len(titles) / seconds(lambda: list(ruler.pipe(titles))), "every title through spaCy")

    x = rng.standard_normal((1500, encoder.dim)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    one = np.zeros(len(x), int)
    row("dispersion, 1,500 in a domain", len(x) / seconds(dispersion, x, one), "entries/s", len(x) / seconds(naive_dispersion, x, repeat=1), "all distances at once")
    row("entropy, 20 paragraphs", 1 / seconds(entropy, x[:20]), "entries/s", 1 / seconds(naive_entropy, x[:20]), "term by term")

    for jobs in (1, 2):     # as commands: a process of its own has a memory of its own
        with tempfile.TemporaryDirectory() as run:
            command = [str(Path(sys.executable).parent / "cmining"), "mine", str(CORPUS), "--out", run, "--jobs", str(jobs)]
            subprocess.run(command, check=True, capture_output=True)
            record = read_record(run)
            n = sum(sum(c.values()) for c in record["counts"].values())
            print(f"mine, {jobs} process{'es' if jobs > 1 else ''}: {n:,} entries in {record['seconds']:.1f} s, {record['peak_memory_bytes'] / 2**20:,.0f} MiB; " +
                  ", ".join(f"{s['step']} {s['seconds']:.1f}" for s in record["steps"]))


if __name__ == "__main__":
    main()
