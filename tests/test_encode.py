"""The bundled encoder as others read it, any sentence-transformers model, and hostile text."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cmining.core.basics import RunError
from cmining.models.encode import BUNDLED, load_hub
from cmining.models.encoders import load_encoder

WIKI = Path(__file__).parent.parent.parent / "shared" / "data" / "wiki"
TEXTS = [
    "The cat sits on the roof.",
    "Die Katze sitzt auf dem Dach.",
    "Le chat est sur le toit.",
    "El gato está en el tejado.",
    "猫が屋根の上にいる。",
    "貓在屋頂上。",
    "",
    " \n",
    "ß" * 5000,
    "1987",
    "?",
]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.mark.parametrize(
    "text", ["", "  \n\t", "\x00", "\u200f\u202e", "。、！…—", "\ud800", "\U000f0000"]
)
def test_nothing_to_encode_is_zero_or_finite(encoder, text):
    v = encoder.encode([text])
    assert v.shape == (1, encoder.dim)
    assert v.dtype == np.float32
    assert np.isfinite(v).all()
    assert np.isclose(np.linalg.norm(v), 1, atol=1e-6) or not v.any()


def test_a_broken_character_spoils_neither_its_text_nor_its_neighbours(encoder):
    good, broken = encoder.encode(["green tea", "green \ud800 tea"])
    assert np.array_equal(good, broken)


def test_same_bytes_whatever_the_batch(encoder):
    many = TEXTS * 500
    whole = encoder.encode(many)
    assert np.array_equal(whole, np.tile(encoder.encode(TEXTS), (500, 1)))
    assert np.array_equal(whole[::-1], encoder.encode(many[::-1]))


@pytest.mark.parametrize(
    "env",
    [
        {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        {"TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": "7"},
    ],
)
def test_same_bytes_in_another_process_and_without_torch(encoder, env, tmp_path):
    code = """
import json, sys
import numpy as np
from cmining.models.encoders import load_encoder

texts = json.load(open(sys.argv[1]))
np.save(sys.argv[2], load_encoder().encode(texts))
assert not {"torch", "sentence_transformers"} & set(sys.modules)
"""
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "texts.json", tmp_path / "v.npy"],
        check=True,
        env=os.environ | env,
    )
    assert np.array_equal(np.load(tmp_path / "v.npy"), encoder.encode(TEXTS))


def test_the_environment_is_left_as_it_was(encoder, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    encoder.encode(TEXTS)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    encoder.encode(TEXTS)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_folder_is_small_and_complete():
    assert {f.name for f in BUNDLED.iterdir()} == {
        "README.md",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    }
    assert sum(f.stat().st_size for f in BUNDLED.iterdir()) <= 20e6


@pytest.mark.parametrize(
    "texts",
    [
        ["water", "Wasser", "eau", "agua", "水", "水"],
        ["university", "Universität", "université", "universidad", "大学", "大學"],
        [
            "The weather is nice today.",
            "Das Wetter ist heute schön.",
            "Il fait beau aujourd'hui.",
            "Hoy hace buen tiempo.",
            "今日は天気がいい。",
            "今天天气很好。",
        ],
    ],
)
def test_translations_are_nearer_than_strangers(encoder, texts):
    v = encoder.encode(texts)
    stranger = encoder.encode(
        [
            "inflation of prices",
            "die Inflation",
            "l'inflation",
            "la inflación",
            "物価の上昇",
            "通货膨胀",
        ]
    )
    assert (v @ v.T).min() > (v @ stranger.T).max()


def test_sentence_transformers_reads_the_bundled_folder(encoder):
    st = pytest.importorskip("sentence_transformers")
    if tuple(map(int, st.__version__.split(".")[:2])) < (6, 2):
        pytest.skip(
            "a table of 8 bits with weights is read from sentence-transformers 6.2 on"
        )
    theirs = st.SentenceTransformer(str(BUNDLED), device="cpu").encode(TEXTS)
    assert np.abs(theirs - encoder.encode(TEXTS)).max() < 1e-5


def test_any_sentence_transformers_model(tiny):
    encoder = load_encoder(str(tiny))
    v = encoder.encode(["a cat", "", "b" * 300, "a cat", " "])
    assert v.shape == (5, 16) == (5, encoder.dim)
    assert v.dtype == np.float32
    assert np.allclose(np.linalg.norm(v, axis=1), [1, 0, 1, 1, 0], atol=1e-6)
    assert np.allclose(v[0], v[3], atol=1e-5)
    assert encoder.encode([]).shape == (0, 16)
    assert encoder.fingerprint == load_hub(str(tiny)).fingerprint


def test_fingerprint_follows_parameters_and_tokenizer(tiny, tmp_path):
    from sentence_transformers import SentenceTransformer

    before = load_hub(str(tiny)).fingerprint
    model = SentenceTransformer(str(tiny), device="cpu")
    next(model.parameters()).data += 1e-3
    model.save(str(tmp_path / "nudged"))
    shutil.copytree(tiny, tmp_path / "renamed")
    file = next((tmp_path / "renamed").rglob("tokenizer.json"))
    file.write_text(file.read_text().replace('"##z"', '"##ž"'))
    nudged = load_hub(str(tmp_path / "nudged")).fingerprint
    renamed = load_hub(str(tmp_path / "renamed")).fingerprint
    assert len({before, nudged, renamed}) == 3


def test_same_bytes_whatever_the_number_of_devices(tiny):
    """Half precision, and a process for each device.

    Two devices that are both the CPU give the bytes of one, near those of full precision.
    """
    from sentence_transformers import SentenceTransformer

    from cmining.models.encode import HubEncoder

    texts = ["ab " * (i * 37 % 50) for i in range(100)]
    plain, one, two = (
        HubEncoder(
            SentenceTransformer(str(tiny), device="cpu"), "tiny", ["cpu"] * n, half
        )
        for n, half in ((1, False), (1, True), (2, True))
    )
    for e in (one, two):
        e.chunk_size = 16
    vectors = two.encode(texts)
    assert np.array_equal(vectors, one.encode(texts))
    assert np.array_equal(vectors[:10], two.encode(texts[:16])[:10])
    assert vectors.dtype == np.float32
    assert 0 < np.abs(vectors - plain.encode(texts)).max() < 5e-3
    assert not vectors[0].any()
    assert two.encode([]).shape == (0, 16)
    assert one.fingerprint == two.fingerprint == plain.fingerprint + "-half"
    pids = [p.pid for p in two._pool["processes"]]
    del two, e
    # they end with their encoder
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_each_worker_of_a_run_takes_a_gpu_by_turns():
    from multiprocessing import current_process

    import joblib

    from cmining.models.encode import gpus_of_process

    def gpus():
        time.sleep(0.3)
        return gpus_of_process(2, current_process().name)

    by_task = joblib.Parallel(2)(joblib.delayed(gpus)() for _ in range(4))
    assert {gpu for of_task in by_task for gpu in of_task} == {"cuda:0", "cuda:1"}


def test_half_precision_on_a_gpu(tiny):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    encoder = load_hub(str(tiny))
    assert encoder.fingerprint.endswith("-half")
    assert encoder.encode(["a cat"]).dtype == np.float32


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    pytest.importorskip("sentence_transformers")
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(OSError) as e:
        load_encoder("nobody/has-this-model")
    assert "nobody/has-this-model" in str(e.value)
    assert "bundled" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_path_that_is_not_there():
    pytest.importorskip("sentence_transformers")
    with pytest.raises(OSError, match="no such folder.*bundled"):
        load_encoder("./no/such/model")


def test_a_folder_that_holds_no_model(tmp_path):
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(OSError, match="cannot load the encoder.*bundled"):
        load_encoder(str(tmp_path))
    with pytest.raises(OSError, match="that is no name"):
        load_encoder("")


def test_a_model_in_the_home_folder(tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert load_encoder("~/model").dim == 16


FRUITS = "apple pear plum cherry quince peach grape fig melon lemon".split()


@pytest.mark.parametrize(
    "value, fault",
    [
        (float("nan"), "not finite for 10 of 10 texts, first for 'apple'"),
        (float("inf"), "not finite for 10 of 10 texts"),
        (1e30, "too large to compute with"),
        (0.0, "nothing but zeros for 10 of 10 different texts"),
        (1e-40, "nothing but zeros for 10 of 10 different texts"),
        (1.0, "one and the same vector for 10 of 10 different texts"),
    ],
)
def test_useless_vectors_are_refused(tiny, value, fault):
    encoder = load_hub(str(tiny))

    def encode(texts, **options):
        return np.full((len(texts), 16), value, np.float32)

    encoder.model.encode = encode
    with pytest.raises(RunError, match=fault) as e:
        encoder.encode(FRUITS)
    assert str(tiny) in str(e.value)
    assert encoder.encode(["", " "]).tolist() == [[0] * 16] * 2  # nothing to say of these


def test_one_text_that_overflows_is_named(tiny):
    encoder = load_hub(str(tiny))
    encode = encoder.model.encode

    def spoil_plum(texts, **options):
        vectors = encode(texts, **options)
        vectors[texts.index("plum"), 3] = np.inf
        return vectors

    encoder.model.encode = spoil_plum
    with pytest.raises(RunError, match="for 1 of 10 texts, first for 'plum'"):
        encoder.encode(FRUITS)


def test_few_texts_may_share_a_vector(tiny):
    encoder = load_hub(str(tiny))
    assert np.allclose(
        encoder.encode(["猫", "犬"]), encoder.encode(["鳥", "魚"]), atol=1e-5
    )


def test_without_sentence_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'cmining\[hub\]'"):
        load_encoder("LaBSE")


def test_memory_is_bounded(encoder):
    """Beyond the vectors, 100,000 short texts need less than 150 MB at any time.

    That is Python's and NumPy's memory, as tracemalloc counts it.
    """
    import tracemalloc

    texts = [TEXTS[i % 6] * 4 for i in range(100_000)]
    tracemalloc.start()
    encoder.encode(texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 * encoder.dim * 4 + 150e6


def wiki_paragraphs(n_articles, n_paragraphs=None):
    "For each language, paragraphs of its first articles."
    for file in sorted(WIKI.glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as f:
            articles = [json.loads(line) for _, line in zip(range(n_articles), f)]
        yield [p for article in articles for p in article["paragraphs"][:n_paragraphs]]


needs_wiki = pytest.mark.skipif(
    not WIKI.exists(), reason="../shared/data/wiki is not beside the checkout"
)


@needs_wiki
def test_tokens_of_pieces_are_those_of_the_text(encoder):
    for texts in wiki_paragraphs(120):
        ids, ends = encoder.tokens(texts)
        whole = encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        assert [ids[a:b].tolist() for a, b in pairwise(ends)] == [e.ids for e in whole]


def test_what_is_remembered_changes_nothing(encoder, monkeypatch):
    fresh = load_encoder()
    monkeypatch.setattr(fresh, "cache_pieces", 3)
    monkeypatch.setattr(fresh, "cache_length", 4)
    for _ in range(3):
        assert np.array_equal(fresh.encode(TEXTS), encoder.encode(TEXTS))
    assert fresh._cache
    assert max(map(len, fresh._cache)) <= 4


@needs_wiki
def test_speed(encoder):
    """250,000 tokens a second on one thread on a quiet machine.

    Half of that is asked for here, since tests share theirs.
    """
    texts = [text for texts in wiki_paragraphs(150, 4) for text in texts]
    whole = encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    n_tokens = sum(len(e.ids) for e in whole)

    def seconds() -> float:
        start = time.process_time()
        encoder.encode(texts)
        return time.process_time() - start

    assert n_tokens / min(seconds() for _ in range(3)) > 125_000
