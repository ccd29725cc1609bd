"""Articles read a second, by kind of source and number of processes.

`python tests/bench_reader.py [articles] [jobs …]`

Sources are built in a temporary folder from the real dump fragments and articles in
../shared/data. The fragments hold long articles (60,000 characters; they come from the
front of the alphabet and of history). "Cut" ones end at the first section behind a length
drawn from a log-normal distribution, so that their plain text is as long as the average
of a whole Wikipedia, about 3,000 characters. Other programs may share the machine, so CPU
seconds are shown beside wall seconds; a rate that two free cores would reach is
2 × articles / CPU seconds, at most.
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
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cmining.ingest.articles import is_redirect
from cmining.ingest.corpus import corpus_files, read_entries
from cmining.ingest.dumps import dump_pages
from cmining.ingest.wikitext import careful_paragraphs, wiki_paragraphs

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
INGEST = """
import json, sys
from cmining.ingest.dumps import ingest_source

source, out, jobs, sample = sys.argv[1:]
record = ingest_source(source, out, "en", sample=int(sample) or None, jobs=int(jobs))
print(json.dumps(record))
"""


def cut(text: str, rng: random.Random) -> str:
    "The sections up to a length drawn at random."
    length = rng.lognormvariate(8.0, 1.1)
    for heading in re.finditer(r"^==", text, re.M):
        if heading.start() > length:
            return text[: heading.start()]
    return text


def page_xml(page_id: int, title: str, text: str) -> str:
    return (
        "  <page>\n"
        f"    <title>{html.escape(title)}</title>\n"
        "    <ns>0</ns>\n"
        f"    <id>{page_id}</id>\n"
        "    <revision>\n"
        f"      <text>{html.escape(text, quote=False)}</text>\n"
        "    </revision>\n"
        "  </page>\n"
    )


def real_articles() -> list[dict]:
    "The articles of the dump fragments, as pages."
    pages = [
        page
        for file in sorted((DATA / "dumps").glob("*/*"))
        for page in dump_pages(file, Counter(), [])
    ]
    return [p for p in pages if p["ns"] in ("", "0") and not is_redirect(p["text"])]


def dump_documents(pages: list[tuple[str, str]]) -> list[bytes]:
    "A dump in pieces: its head, a hundred pages each, its end."
    xml = [page_xml(i % 100, *page).encode() for i, page in enumerate(pages)]
    batches = [b"".join(xml[i : i + 100]) for i in range(0, len(xml), 100)]
    return [b'<mediawiki xml:lang="en">\n', *batches, b"</mediawiki>\n"]


def write_dumps(folder: Path, n: int) -> dict[str, int]:
    "Dumps of n shortened and n / 10 whole articles; their characters an article."
    rng = random.Random(0)
    real = real_articles()
    sizes = {}
    for kind, n_pages, shorten in (
        ("long", n // 10, lambda text: text),
        ("cut", n, lambda text: cut(text, rng)),
    ):
        pages = [
            (f"{page['title']} {i}", shorten(page["text"]))
            for i, page in enumerate(islice(cycle(real), n_pages))
        ]
        sizes[kind] = sum(len(text) for _, text in pages) // len(pages)
        documents = dump_documents(pages)
        multistream = b"".join(map(bz2.compress, documents))
        (folder / f"{kind}-multistream.xml.bz2").write_bytes(multistream)
    whole = b"".join(documents)
    (folder / "cut-one-stream.xml.bz2").write_bytes(bz2.compress(whole))
    (folder / "cut.xml.gz").write_bytes(gzip.compress(whole, 6))
    return sizes


def write_rows(folder: Path, n: int) -> int:
    "5 n rows of Parquet and n of a search dump; their characters an article."
    entries = [
        entry
        for files in corpus_files(DATA / "wiki").values()
        for file in files
        for entry in read_entries(file, "en", Counter())
    ]
    titles = []
    paragraphs = []
    for i, entry in enumerate(islice(cycle(entries), 5 * n)):
        titles.append(f"{entry['title']} {i}")
        paragraphs.append(entry["paragraphs"][:9])
    texts = ["\n\n".join(each) for each in paragraphs]
    columns = {
        "id": [str(i) for i in range(len(texts))],
        "url": ["https://example.org/"] * len(texts),
        "title": titles,
        "text": texts,
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=1000)
    search_dump = folder / "rows-cirrussearch-content.json.gz"
    with gzip.open(search_dump, "wt", compresslevel=6) as f:
        for i in range(n):
            index = {"index": {"_type": "page", "_id": str(i)}}
            document = {
                "title": titles[i],
                "namespace": 0,
                "opening_text": paragraphs[i][0],
                "text": " ".join(paragraphs[i]),
            }
            f.write(json.dumps(index) + "\n" + json.dumps(document) + "\n")
    return sum(map(len, texts)) // len(texts)


def measure_ingest(source: Path, jobs: int, sample: int = 0) -> str:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=source.parent) as out:
        command = [sys.executable, "-c", INGEST, source, out, str(jobs), str(sample)]
        output = subprocess.run(command, check=True, capture_output=True).stdout
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    n = json.loads(output)["read"]
    return (
        f"{n:8,} articles {wall:6.1f} s wall {cpu:6.1f} s CPU"
        f" {cpu / wall:4.1f} cores busy {n / wall:8,.0f}/s {n / cpu:8,.0f}/s a core"
        f" {source.stat().st_size / cpu / 2**20:6.1f} MiB of file/s a core"
    )


def measure_bzip2(dump: Path, n: int) -> str:
    start = time.process_time()
    n_bytes = len(bz2.decompress(dump.read_bytes()))
    seconds = time.process_time() - start
    return f"{n / seconds:8,.0f} articles/s a core {n_bytes / seconds / 1e6:6.1f} MB/s"


def measure_parser(parse: Callable[[str], object], texts: list[str]) -> str:
    start = time.process_time()
    for text in texts:
        parse(text)
    seconds = time.process_time() - start
    n_characters = sum(map(len, texts))
    return (
        f"{len(texts) / seconds:8,.0f} articles/s a core"
        f" {n_characters / seconds / 1e6:6.1f} M characters/s"
    )


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    all_jobs = [int(jobs) for jobs in sys.argv[2:]] or [1, 2]
    if not DATA.is_dir():
        sys.exit(
            "The real dumps are not beside the checkout (../shared/data): nothing to"
            " measure."
        )
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        sizes = write_dumps(folder, n) | {"rows": write_rows(folder, n)}
        print("characters an article:", sizes)
        dump = folder / "cut-multistream.xml.bz2"
        print(f"{'bzip2 alone: the yardstick':34}{measure_bzip2(dump, n)}")
        texts = [page["text"] for page in dump_pages(dump, Counter(), [])][:2000]
        for parse in (careful_paragraphs, wiki_paragraphs):
            print(f"{parse.__name__:34}{measure_parser(parse, texts)}")
        for source in sorted(folder.iterdir()):
            for jobs in all_jobs:
                rates = measure_ingest(source, jobs)
                print(f"{source.name:34}jobs {jobs}", rates, flush=True)
        for jobs in all_jobs:
            rates = measure_ingest(folder / "rows.parquet", jobs, sample=1000)
            print(f"{'rows.parquet, sample of 1,000':34}jobs {jobs}", rates, flush=True)


if __name__ == "__main__":
    main()
