"""Pages of a WARC harvested a second, and the memory that it takes.

`python tests/bench_web.py [pages] [jobs …]`

The archive is made up: pages of 45 kB in six languages, half of them menus, teasers, scripts
and a notice about cookies that are the same on all pages of one of forty hosts, the other
half eight paragraphs made of words of the bundled sample, drawn anew for each page; one page
in ten is a copy of an earlier one under another address. Memory is the proportional set size
of the process and all below it, added up. Other programs may share the machine, so CPU
seconds are shown beside wall seconds.
"""

import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
LANGS = ("de", "en", "es", "fr", "ja", "zh")
HARVEST = """
import json, sys
from cmining.collect.web import harvest
archive, out, jobs = sys.argv[1:]
print(json.dumps(harvest([archive], out, jobs=int(jobs))))
"""


def vocabulary(lang: str) -> list[str]:
    "Words of the sample, as often as they occur; of Chinese and Japanese what is between stops."
    rows = map(json.loads, (SAMPLE / f"{lang}.jsonl").read_text("utf-8").splitlines())
    text = " ".join(p for row in rows for p in row["paragraphs"])
    if lang in ("ja", "zh"):
        for stop in "。，、":
            text = text.replace(stop, " ")
    return text.split()


def paragraph(draw: random.Random, lang: str, words: list[str]) -> str:
    if lang in ("ja", "zh"):
        clauses = draw.choices(words, k=12)
        return "，".join(clauses) + "。"
    return " ".join(draw.choices(words, k=70)).capitalize() + "."


def frame(draw: random.Random, host: str, words: list[str]) -> tuple[str, str]:
    "What stands before and behind the text on each page of a host."
    links = "".join(
        f'<li class="menu-item menu-item-{i}"><a href="/{host}/{i}/section" title="x">'
        f"{' '.join(draw.choices(words, k=3))}</a></li>"
        for i in range(90)
    )
    teasers = "".join(
        f'<div class="teaser"><a href="/t{i}"><img src="/i{i}.jpg" alt=""></a>'
        f"<h3>{' '.join(draw.choices(words, k=6))}</h3></div>"
        for i in range(30)
    )
    script = "<script>" + "var a = {b: [1, 2, 3]};" * 300 + "</script>"
    cookies = f"<p>{' '.join(draw.choices(words, k=30))}.</p>"
    head = f"{script}</head><body><header><nav><ul>{links}</ul></nav></header>"
    return head, f"<aside>{teasers}</aside><footer>{cookies}</footer>{script}"


def write_archive(path: Path, n_pages: int) -> None:
    draw = random.Random(0)
    words = {lang: vocabulary(lang) for lang in LANGS}
    hosts = [(f"host{i}.example", LANGS[i % 6]) for i in range(40)]
    frames = {host: frame(draw, host, words[lang]) for host, lang in hosts}
    texts: list[str] = []
    with open(path, "wb") as file:
        for i in range(n_pages):
            host, lang = hosts[i % len(hosts)]
            before, behind = frames[host]
            if i % 10 or not texts:
                text = "".join(
                    f"<p>{paragraph(draw, lang, words[lang])}</p>" for _ in range(8)
                )
                texts = [*texts[-99:], text]
            else:
                text = draw.choice(texts)
            html = (
                f'<!doctype html><html lang="{lang}"><head><meta charset="utf-8">'
                f"<title>Page {i} | {host}</title>{before}<main><h1>Page {i}</h1>{text}</main>"
                f"{behind}</body></html>"
            ).encode()
            answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + html
            head = (
                "WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
                f"WARC-Target-URI: http://{host}/{i}\r\nContent-Length: {len(answer)}\r\n\r\n"
            ).encode()
            file.write(gzip.compress(head + answer + b"\r\n\r\n", 6, mtime=0))


def memory(process: psutil.Process) -> int:
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def measure(archive: Path, n_pages: int, jobs: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        words = [sys.executable, "-c", HARVEST, archive, f"{folder}/corpus", str(jobs)]
        run = subprocess.Popen(words, stdout=subprocess.PIPE)
        process = psutil.Process(run.pid)
        most = 0
        while run.poll() is None:
            try:
                most = max(most, memory(process))
            except psutil.Error:
                break
            time.sleep(0.2)
        told = json.loads(run.communicate()[0])
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (
        f"{jobs} jobs: {n_pages / wall:6.1f} pages/s; wall {wall:5.1f} s, CPU {cpu:5.1f} s:"
        f" {n_pages / cpu:5.1f} pages a CPU second; most memory {most / 2**20:.0f} MiB;"
        f" {told['pages']}, {told['paragraphs']}"
    )


def main() -> None:
    n_pages = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    jobs = list(map(int, sys.argv[2:])) or [2]
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "made-up.warc.gz")
        write_archive(archive, n_pages)
        print(f"{n_pages:,} pages, {archive.stat().st_size / 1e6:.1f} MB", flush=True)
        for n in jobs:
            print(measure(archive, n_pages, n), flush=True)


if __name__ == "__main__":
    main()
