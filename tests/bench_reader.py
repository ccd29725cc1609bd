"""Articles read a second, by kind of source and number of processes: `python tests/bench_reader.py [articles] [jobs …]`.

Sources are built in a temporary folder from the real dump fragments and articles in ../shared/data. The fragments hold long articles (60,000
characters; they come from the front of the alphabet and of history). "Cut" ones end at the first section behind a length drawn from a log-normal
distribution, so that their plain text is as long as the average of a whole Wikipedia, about 3,000 characters. Other programs may share the
machine, so CPU seconds are shown beside wall seconds; a rate that two free cores would reach is 2 × articles / CPU seconds, at most.
"""

import bz2
import gzip
import html
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cmining.ingest.articles import is_redirect
from cmining.ingest.corpus import corpus_files, read_entries
from cmining.ingest.dumps import dump_pages
from cmining.ingest.wikitext import careful_paragraphs, wiki_paragraphs

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
RUN = (
    "import sys, json; from cmining.ingest.dumps import ingest_source; s, o, lang, jobs,"
    " sample = sys.argv[1:]\nprint(json.dumps(ingest_source(s, o, lang, int(sample) or"
    " None, 0, int(jobs))))"
)


def cut(text: str, rng: random.Random) -> str:
    "The sections up to a length drawn at random."
    length = rng.lognormvariate(8.0, 1.1)
    return next(
        (
            text[: m.start()]
            for m in re.finditer(r"^==", text, re.M)
            if m.start() > length
        ),
        text,
    )


def xml(pages: list[tuple[str, str]]) -> bytes:
    return "".join(
        f"  <page>\n    <title>{html.escape(t)}</title>\n    <ns>0</ns>\n   "
        f" <id>{i}</id>\n    <revision>\n     "
        f" <text>{html.escape(x, quote=False)}</text>\n    </revision>\n  </page>\n"
        for i, (t, x) in enumerate(pages)
    ).encode()


def write_sources(folder: Path, n: int) -> dict[str, int]:
    """Files of n articles each, by name, with their characters of wikitext or text an
    article.
    """
    rng = random.Random(0)
    sizes = {}
    real = [
        p
        for f in sorted((DATA / "dumps").glob("*/*"))
        for p in dump_pages(f, Counter(), [])
        if p["ns"] in ("", "0") and not is_redirect(p["text"])
    ]
    for kind, share, shorten in (
        ("long", 10, lambda t: t),
        ("cut", 1, lambda t: cut(t, rng)),
    ):
        pages = [
            (f"{p['title']} {i}", shorten(p["text"]))
            for i, p in enumerate(islice(cycle(real), n // share))
        ]
        batches = [xml(pages[i : i + 100]) for i in range(0, len(pages), 100)]
        whole = [b'<mediawiki xml:lang="en">\n', *batches, b"</mediawiki>\n"]
        (folder / f"{kind}-multistream.xml.bz2").write_bytes(
            b"".join(map(bz2.compress, whole))
        )
        if kind == "cut":
            (folder / f"{kind}-one-stream.xml.bz2").write_bytes(
                bz2.compress(b"".join(whole))
            )
            (folder / f"{kind}.xml.gz").write_bytes(gzip.compress(b"".join(whole), 6))
        sizes[kind] = sum(len(t) for _, t in pages) // len(pages)
    articles = [
        e
        for files in corpus_files(DATA / "wiki").values()
        for f in files
        for e in read_entries(f, "en", Counter())
    ]
    articles = [
        e | {"title": f"{e['title']} {i}", "paragraphs": e["paragraphs"][:9]}
        for i, e in enumerate(islice(cycle(articles), 5 * n))
    ]
    texts = ["\n\n".join(e["paragraphs"]) for e in articles]
    sizes["rows"] = sum(map(len, texts)) // len(texts)
    pq.write_table(
        pa.table(
            {
                "id": [str(i) for i in range(len(texts))],
                "url": ["https://example.org/"] * len(texts),
                "title": [e["title"] for e in articles],
                "text": texts,
            }
        ),
        folder / "rows.parquet",
        row_group_size=1000,
    )
    with gzip.open(
        folder / "rows-cirrussearch-content.json.gz", "wt", compresslevel=6
    ) as f:
        for i, e in enumerate(articles[:n]):
            f.write(
                json.dumps({"index": {"_type": "page", "_id": str(i)}})
                + "\n"
                + json.dumps(
                    {
                        "title": e["title"],
                        "namespace": 0,
                        "opening_text": e["paragraphs"][0],
                        "text": " ".join(e["paragraphs"]),
                    }
                )
                + "\n"
            )
    return sizes


def measure(source: Path, jobs: int, sample: int = 0) -> str:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=source.parent) as out:
        told = json.loads(
            subprocess.run(
                [sys.executable, "-c", RUN, source, out, "en", str(jobs), str(sample)],
                check=True,
                capture_output=True,
            ).stdout
        )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (
        f"{told['read']:8,} articles {wall:6.1f} s wall {cpu:6.1f} s CPU"
        f" {cpu / wall:4.1f} cores busy {told['read'] / wall:8,.0f}/s"
        f" {told['read'] / cpu:8,.0f}/s a core {source.stat().st_size / cpu / 2**20:6.1f}"
        " MiB of file/s a core"
    )


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    jobs = [int(j) for j in sys.argv[2:]] or [1, 2]
    if not DATA.is_dir():
        sys.exit(
            "The real dumps are not beside the checkout (../shared/data): nothing to"
            " measure."
        )
    with tempfile.TemporaryDirectory() as d:
        print("characters an article:", write_sources(Path(d), n))
        source = Path(d, "cut-multistream.xml.bz2")
        start = time.process_time()
        bytes_read = len(bz2.decompress(source.read_bytes()))
        seconds = time.process_time() - start
        print(
            f"{'bzip2 alone: the yardstick':34}{n / seconds:8,.0f} articles/s a core"
            f" {bytes_read / seconds / 1e6:6.1f} MB/s"
        )
        texts = [p["text"] for p in dump_pages(source, Counter(), [])][:2000]
        for parse in (careful_paragraphs, wiki_paragraphs):
            start = time.process_time()
            for t in texts:
                parse(t)
            seconds = time.process_time() - start
            print(
                f"{parse.__name__:34}{len(texts) / seconds:8,.0f} articles/s a core"
                f" {sum(map(len, texts)) / seconds / 1e6:6.1f} M characters/s"
            )
        for path in sorted(Path(d).iterdir()):
            for j in jobs:
                print(f"{path.name:34}jobs {j}", measure(path, j), flush=True)
        for j in jobs:
            print(
                f"{'rows.parquet, sample of 1,000':34}jobs {j}",
                measure(Path(d, "rows.parquet"), j, 1000),
                flush=True,
            )


if __name__ == "__main__":
    main()
