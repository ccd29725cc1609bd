"""Megabytes of a Wikidata dump read a second, and the memory that it takes.

`python tests/bench_graph.py [megabytes] [jobs …]`

The dump is made up, in the layout and with the lengths of Wikidata's: 13 kB an item on
average, most of it references and labels in many languages; one item in five has a country.
Memory is that of the process and all below it, resident, added up (pages that they share are
counted in each) and as proportional set size (shared pages are divided). Other programs may
share the machine, so CPU seconds are shown beside wall seconds.
"""

import bz2
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

LANGS = ("en", "de", "es", "fr", "ja", "zh")
MANY = [a + b for a in "abcdefghijkl" for b in "nrstvz"]
EXTRACT = """
import json, sys
from pathlib import Path
from cmining.collect.graph import extract_graph
dump, folder, jobs, *langs = sys.argv[1:]
extract_graph(dump, Path(folder), langs, int(jobs))
"""


def statement(draw, prop, value):
    snak = {
        "snaktype": "value",
        "property": prop,
        "hash": f"{draw.getrandbits(160):040x}",
    }
    of = {"entity-type": "item", "numeric-id": value, "id": f"Q{value}"}
    snak["datavalue"] = {"value": of, "type": "wikibase-entityid"}
    snak["datatype"] = "wikibase-item"
    references = [
        {"hash": f"{draw.getrandbits(160):040x}", "snaks": {"P248": [snak]}}
        for _ in range(draw.choice([0, 1, 1, 2]))
    ]
    return {
        "mainsnak": snak,
        "type": "statement",
        "qualifiers": {"P31": [snak]} if draw.random() < 0.1 else {},
        "id": f"Q{value}${draw.getrandbits(128):032x}",
        "rank": "normal",
        "references": references,
    }


def item(draw, number):
    props = ["P31", "P50", "P577", "P1433", "P921", "P2860", "P106", "P569"]
    claims = {p: [statement(draw, p, draw.randrange(1, 10**8))] for p in props}
    claims["P31"] = [
        statement(draw, "P31", draw.choice([5, 13442814, 2095, 746549, 33506]))
    ]
    if draw.random() < 0.04:
        claims["P279"] = [statement(draw, "P279", draw.choice([2095, 746549, 33506]))]
    if draw.random() < 0.2:
        claims["P17"] = [statement(draw, "P17", draw.choice([17, 155, 183]))]
    langs = {*LANGS, *draw.sample(MANY, draw.choice([0, 4, 20, 60]))}
    word = f"name {number} é 名 {draw.getrandbits(40):x}"
    labels = {lang: {"language": lang, "value": word} for lang in sorted(langs)}
    sites = {f"{lang}wiki": {"site": lang, "title": word, "badges": []} for lang in LANGS}
    return {
        "type": "item",
        "id": f"Q{number}",
        "labels": labels,
        "descriptions": labels,
        "aliases": {lang: [label] for lang, label in labels.items()},
        "claims": claims,
        "sitelinks": sites if draw.random() < 0.4 else {},
        "lastrevid": draw.getrandbits(30),
    }


def write_dump(path: Path, n_bytes: int) -> int:
    draw = random.Random(0)
    size = 0
    with open(path, "w", encoding="utf-8") as file:
        file.write("[\n")
        number = 0
        while size < n_bytes:
            number += draw.randint(1, 3)
            line = json.dumps(item(draw, number), separators=(",", ":"))
            size += file.write(line + ",\n")
        file.write("{}\n]\n")
    return size


def memory(process: psutil.Process) -> tuple[int, int]:
    "Resident and proportional bytes of a process and all below it."
    rss = pss = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            info = one.memory_full_info()
        except psutil.Error:
            continue
        rss += info.rss
        pss += info.pss
    return rss, pss


def measure(dump: Path, size: int, jobs: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        words = [
            sys.executable,
            "-c",
            EXTRACT,
            dump,
            f"{folder}/graph",
            str(jobs),
            *LANGS,
        ]
        run = subprocess.Popen(words)
        process = psutil.Process(run.pid)
        most = (0, 0)
        while run.poll() is None:
            try:
                most = tuple(map(max, most, memory(process)))
            except psutil.Error:
                break
            time.sleep(0.1)
        run.wait()
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        record = json.loads(Path(folder, "graph", "graph.json").read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rate = size / 1e6 / record["seconds"]
    return (
        f"{dump.suffix:5} {jobs} jobs: {rate:6.1f} MB/s while reading, {size / 1e6 / wall:6.1f}"
        f" with start; wall {wall:5.1f} s, CPU {cpu:5.1f} s; most memory"
        f" {most[0] / 2**20:.0f} MiB resident, {most[1] / 2**20:.0f} MiB proportional;"
        f" {record['counts']['items']:,} items"
    )


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 250
    jobs = list(map(int, sys.argv[2:])) or [2]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "dump.json")
        size = write_dump(plain, megabytes * 10**6)
        data = plain.read_bytes()
        for pack, name in [
            (gzip.compress, "dump.json.gz"),
            (bz2.compress, "dump.json.bz2"),
        ]:
            packed = Path(folder, name)
            packed.write_bytes(pack(data, 6))
            print(f"{name}: {size / packed.stat().st_size:.1f} to 1", flush=True)
        del data
        for path in (plain, *sorted(Path(folder).glob("dump.json.*"))):
            for n in jobs:
                print(measure(path, size, n), flush=True)


if __name__ == "__main__":
    main()
