"""The pipeline that a researcher would write over a week-end, for the benchmark: everything in memory, the libraries'
defaults, entropy by whole articles first. Called by bench.py in a process of its own:

    python tests/plain_pipeline.py CORPUS OUT.json [--centers-of RUN]

With --centers-of it takes the centres that K-Means found in that run instead of its own, and says how far the two agree.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sentence_transformers import SentenceTransformer
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from cmining.core.runs import Params, read_record, read_run, work_folder, work_shards
from cmining.mine.discover import default_n_groups
from cmining.mine.pipeline import load_vectors
from cmining.mine.prune import prune_reasons
from cmining.mine.refine import default_n_domains
from cmining.mine.vectors import fit_centers, nearest_center
from cmining.models.encode import BUNDLED, entry_text


def row_entropy(v: np.ndarray) -> float:
    if len(v) < 2:
        return 0.0
    s = np.maximum(v @ v.T, 0)
    np.fill_diagonal(s, 1)
    p = s / s.sum(1, keepdims=True)
    return float(-(p * np.log(np.where(p > 0, p, 1))).sum() / len(v) / np.log(len(v)))


def centers_of(run: Path) -> dict[str, np.ndarray]:
    "The centres that K-Means found in a run, by language, and those of its groups."
    with threadpool_limits(1):
        found = {
            lang: load_vectors(shards)
            for lang, shards in work_shards(run, "vectors").items()
        }
        centers = {
            lang: fit_centers(x, default_n_domains(len(x))) for lang, x in found.items()
        }
        x = np.load(work_folder(run) / read_record(run)["candidates"], mmap_mode="r")
        return centers | {"groups": fit_centers(x, default_n_groups(len(x)))}


def main(corpus: Path, out: Path, run: Path | None) -> None:
    params = Params()
    seconds = {}
    begin = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begin
        seconds[name] = round(time.perf_counter() - begin, 1)
        begin = time.perf_counter()

    model = SentenceTransformer(str(BUNDLED))
    tables = {
        f.name: pd.concat([pd.read_parquet(p) for p in sorted(f.iterdir())])
        for f in sorted(corpus.iterdir())
    }
    for lang, table in tables.items():
        table["paragraphs"] = [
            [" ".join(p.split()) for p in t.split("\n\n")] for t in table["text"]
        ]
        tables[lang] = table[
            [r is None for r in prune_reasons(list(table["title"]), lang)]
        ].reset_index(drop=True)
    lap("read")
    vectors = {}
    for lang, table in tables.items():
        vectors[lang] = model.encode(
            [
                entry_text(t, p, params.n_paragraphs)
                for t, p in zip(table["title"], table["paragraphs"])
            ],
            normalize_embeddings=True,
        )
    lap("encode")
    for lang, table in tables.items():
        sizes = [len(p[: params.max_paragraphs]) for p in table["paragraphs"]]
        flat = model.encode(
            [q for p in table["paragraphs"] for q in p[: params.max_paragraphs]],
            normalize_embeddings=True,
        )
        table["entropy"] = [row_entropy(v) for v in np.split(flat, np.cumsum(sizes)[:-1])]
    lap("entropy")
    centers = centers_of(run) if run else {}
    candidates = []
    for lang, table in tables.items():
        x = vectors[lang]
        k = default_n_domains(len(table))
        table["domain"] = (
            nearest_center(x, centers[lang])
            if run
            else KMeans(k, random_state=0).fit_predict(x)
        )
        for _, rows in table.groupby("domain").indices.items():
            near = (
                NearestNeighbors(n_neighbors=min(params.k_neighbors, len(rows) - 1) + 1)
                .fit(x[rows])
                .kneighbors(x[rows])[0]
            )
            table.loc[rows, "dispersion"] = near[:, 1:].mean(1)
        dense = table[
            table["dispersion"]
            < table.groupby("domain")["dispersion"].transform(
                lambda d: d.quantile(params.density_quantile)
            )
        ]
        dense = dense[
            dense["entropy"]
            >= dense.groupby("domain")["entropy"].transform(
                lambda h: h.quantile(1 - params.entropy_keep)
            )
        ]
        candidates.append(dense.assign(lang=lang, row=dense.index))
    lap("refine")
    table = pd.concat(candidates, ignore_index=True)
    x = np.concatenate(
        [vectors[lang][rows["row"]] for lang, rows in table.groupby("lang", sort=False)]
    )
    table["group"] = (
        nearest_center(x, centers["groups"])
        if run
        else KMeans(default_n_groups(len(x)), random_state=0).fit_predict(x)
    )
    share = table.groupby("group")["lang"].agg(
        lambda s: s.value_counts(normalize=True).iloc[0]
    )
    main_lang = table.groupby("group")["lang"].agg(lambda s: s.mode().iloc[0])
    size = table["group"].value_counts()
    chosen = (
        (table["group"].map(size) >= params.tau)
        & ((table["group"].map(share) > params.theta) | (table["group"].map(share) == 1))
        & (table["group"].map(main_lang) == table["lang"])
    )
    lap("group")
    told = {"steps": seconds, "culture_points": int(chosen.sum())}
    if run:
        mine, theirs = (
            set(zip(t["lang"], t["title"]))
            for t in (table[chosen], read_run(run, "culture_points"))
        )
        told["jaccard"] = round(len(mine & theirs) / len(mine | theirs), 4)
    out.write_text(json.dumps(told))


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        Path(sys.argv[4]) if "--centers-of" in sys.argv else None,
    )
