"""Word-association norms: every layout, every trap, every kind of broken file; and the items made of them."""

import bz2
import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmining.align.items import (
    LIST_PROMPTS,
    WordSettings,
    list_answer,
    make_word_items,
    ranking_answer,
    read_gold,
    split_cues,
    subsamples,
    word_items,
)
from cmining.align.norms import gold_counts, norms_table, read_norms
from cmining.align.reward import parse_list, read_ranking, score_ranking
from cmining.core.basics import CorpusError, RunError
from cmining.instruct.export import export_dataset, trainable_items
from cmining.instruct.items import check_item, read_items

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
EAT = ROOT / "data" / "norms" / "eat.tsv"
RAW = "id,country,nativeLanguage,cue,R1Raw,R2Raw,R3Raw,R1,R2,R3\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(path: Path, **options) -> dict[str, dict[str, int]]:
    return gold_counts(read_norms(path, **options).table)


# ---------------------------------------------------------------- layouts

GOLD = {"lamp": {"light": 3, "bulb": 1, "oil": 1}}
LAYOUTS = {
    "strength.SWOW-EN.R1.csv": (
        "cue\tresponse\tR1\tN\tR1.Strength\n"
        "lamp\tlight\t3\t5\t0.6\nlamp\tbulb\t1\t5\t0.2\nlamp\toil\t1\t5\t0.2\n"
    ),
    "strength.SWOW-RP.R123.csv": (
        '"cue","response","R123","N","R123.Strength"\n'
        '"lamp","light",3,5,0.6\n"lamp","bulb",1,5,0.2\n"lamp","oil",1,5,0.2\n'
    ),
    "swow.en.csv": (
        "forward\tlamp\tlight\t3\nforward\tlamp\tbulb\t1\nforward\tlamp\toil\t1\n"
    ),
    "associationData.csv": (
        "1;lamp;light;bulb;#Missing\n2;lamp;light;oil;#Missing\n3;lamp;light;;\n"
    ),
    "SWOW-EN.R100.csv": RAW
    + "1,Ireland,Ireland,lamp,Ligth,,,light,bulb,#Missing\n"
    + "2,Ireland,Ireland,lamp,,,,light,oil,#Missing\n"
    + "3,Ireland,Ireland,lamp,,,,light,#Missing,#Missing\n",
    "Cue_Target_Pairs.A-B": (
        "<HTML><BODY><PRE>\nCUE, TARGET, NORMED?, #G, #P, FSG, BSG\n"
        "LAMP, LIGHT, YES, 5, 3, .6, .1\nLAMP, BULB, YES, 5, 1, .2, .1, \xa5\n"
        "LAMP, OIL, NO, 5, 1, .2\n</PRE></BODY></HTML>\n"
    ),
    "eat.tsv": (
        "cue\tresponse\tcount\tstrength\nlamp\tlight\t3\t.6\nlamp\tbulb\t1\t.2\nlamp\toil\t1\t.2\n"
    ),
    "long.csv": "participantID,cue,response\n1,lamp,light\n2,lamp,light\n3,lamp,light\n4,lamp,oil\n5,lamp,bulb\n",
    "semicolons.csv": "stimulus;associate;frequency\nlamp;light;3\nlamp;bulb;1.0\nlamp;oil;1\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_the_same_table(tmp_path, name):
    encoding = "latin-1" if name.startswith("Cue") else "utf-8"
    path = write(tmp_path / name, LAYOUTS[name].encode(encoding))
    assert pairs(path) == GOLD
    table = read_norms(path).table
    assert list(table) == ["cue", "response", "count", "rank"]
    assert table["rank"].tolist() == [1, 2, 3]


def test_compressed_and_with_a_byte_order_mark(tmp_path):
    text = LAYOUTS["eat.tsv"].encode("utf-8-sig")
    assert pairs(write(tmp_path / "a.tsv", text)) == GOLD
    assert pairs(write(tmp_path / "a.tsv.gz", gzip.compress(text))) == GOLD
    assert pairs(write(tmp_path / "a.tsv.bz2", bz2.compress(text))) == GOLD


# ------------------------------------------------------------------ traps


def test_null_nan_and_na_are_words(tmp_path):
    text = "cue,response,count\nnull,void,2\nvoid,null,7\ngrandma,nan,2\nelement,NA,1\nNaN,None,1\n"
    assert pairs(write(tmp_path / "a.csv", text)) == {
        "null": {"void": 2},
        "void": {"null": 7},
        "grandma": {"nan": 2},
        "element": {"NA": 1},
        "NaN": {"None": 1},
    }


def test_what_is_no_association(tmp_path):
    hashed = hashlib.md5(b"x").hexdigest()
    text = RAW + "\n".join(
        f"1,X,X,lamp,,,,{responses}"
        for responses in [
            f"light,{hashed},oil",
            "lamp,light,#Missing",
            "#Unknown,#Missing,#Missing",
            "#Missing,light,oil",
            "light,#Missing,oil",
            " light , light  house ,#Missing",
        ]
    )
    path = write(tmp_path / "a.csv", text + "\n")
    assert pairs(path) == {"lamp": {"light": 3, "light house": 1, "oil": 1}}
    left_out = read_norms(path).record["left_out"]
    assert left_out["masked response"] == 1
    assert left_out["same as the cue"] == 1
    assert left_out["unknown cue"] == 1
    assert left_out["gap in the row"] == 2
    assert left_out["no response"] == 4


def test_raw_spellings_are_not_counted(tmp_path):
    text = RAW + "1,X,X,lamp,ligth,blub,oyl,light,bulb,oil\n"
    assert set(pairs(write(tmp_path / "a.csv", text))["lamp"]) == {"light", "bulb", "oil"}


def test_one_country(tmp_path):
    text = RAW + "".join(
        f"1,{country},{language},lamp,,,,{word},#Missing,#Missing\n"
        for country, language, word in [
            ("United States", "United States", "light"),
            ("United States", "Canada", "bulb"),
            ("Ireland", "United States", "oil"),
        ]
    )
    path = write(tmp_path / "a.csv", text)
    assert pairs(path, country="United States") == {"lamp": {"light": 1}}
    assert read_norms(path, "United States").record["left_out"]["another country"] == 2


def test_ties_are_in_the_order_of_code_points(tmp_path):
    text = "cue,response,count\nlamp,wick,1\nlamp,bulb,1\nlamp,Zeus,1\nlamp,light,5\n"
    assert list(pairs(write(tmp_path / "a.csv", text))["lamp"]) == [
        "light",
        "Zeus",
        "bulb",
        "wick",
    ]


def test_quotation_marks_of_a_tab_file_are_letters(tmp_path):
    text = 'cue\tresponse\tcount\ntape\t5"\t2\ntape\t"sticky\t1\n'
    assert pairs(write(tmp_path / "a.tsv", text)) == {"tape": {'5"': 2, '"sticky': 1}}


# ----------------------------------------------------------- broken files

HEAD = "cue,response,count\n"
BROKEN = {
    "empty": (b"", "the file is empty"),
    "blank": (b" \n\n", "the file is empty"),
    "nothing but separators": (b"\x1c\x85", "the file is empty|no UTF-8"),
    "a separator": (b"\x1c", "the file is empty"),
    "header only": (HEAD, "no association is in it"),
    "no cue": ("word,response\na,b\n", "line 1: no column is the cue"),
    "no response": ("cue,age\na,7\n", "no column has responses"),
    "one column": ("cue\nlamp\n", "no column has responses"),
    "R3 before R2": ("cue,R1,R3,R4\na,b,c,d\n", "two columns|no column has responses"),
    "column twice": ("cue,cue,response\na,b,c\n", "two columns are called cue"),
    "too many fields": (
        HEAD + "lamp,oil,lamp,3\n",
        "line 2: 4 fields, where the first line has 3",
    ),
    "too few fields": (HEAD + "lamp,light,3\nlamp,bulb\n", "line 3: 2 fields"),
    "cut last line": (HEAD + "lamp,light,3\nlam", "line 3: 1 fields"),
    "count is a share": (HEAD + "lamp,light,0.255\n", "line 2: the count is '0.255'"),
    "count is negative": (HEAD + "lamp,light,-3\n", "the count is '-3'"),
    "count is a word": (HEAD + "lamp,light,many\n", "the count is 'many'"),
    "count is missing": (HEAD + "lamp,light,\n", "the count is ''"),
    "count is infinite": (HEAD + "lamp,light,inf\n", "the count is 'inf'"),
    "count is huge": (HEAD + f"lamp,light,{9**40}\n", "no whole number"),
    "latin-1": ((HEAD + "café,bar,3\n").encode("latin-1"), "byte 0xe9 is no UTF-8"),
    "utf-16": ((HEAD + "a,b,3\n").encode("utf-16"), "UTF-16"),
    "nul bytes": (HEAD + "lamp,li\0ght,3\n", "NUL bytes"),
    "open quote": (HEAD + 'lamp,"light,3\nlamp,bulb,1\n', "fields cannot be told apart"),
    "stray quote": (HEAD + 'lamp,"li"ght,3\n', "line 2: the fields cannot be told apart"),
    "web page": (
        "<!DOCTYPE html>\n<html><body>Sign in</body></html>",
        "this is a web page",
    ),
    "excel": (b"PK\x03\x04\x14\x00xl/workbook.xml", "zip or Excel"),
    "json": ('{"cue": "lamp", "response": "light"}\n', "this is JSON"),
    "gzip without the name": (gzip.compress(HEAD.encode()), "compressed"),
    "lfs pointer": ("version https://git-lfs.github.com/spec/v1\noid x\n", "Git LFS"),
    "nothing but hashes": (
        HEAD + f"lamp,{'a1' * 16},3\n",
        "left out: 3 × masked response",
    ),
    "all are the cue": (HEAD + "lamp,lamp,3\n", "3 × same as the cue"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_says_what_is_wrong(tmp_path, kind):
    content, message = BROKEN[kind]
    path = write(tmp_path / "norms.csv", content)
    with pytest.raises(CorpusError, match=message) as caught:
        read_norms(path)
    text = str(caught.value)
    assert "norms.csv" in text
    assert ";" in text, "it says the way out"
    assert len(text) < 500


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(CorpusError, match="no such file"):
        read_norms(tmp_path / "none.csv")
    with pytest.raises(CorpusError, match="this is a folder"):
        read_norms(tmp_path)
    cut = write(
        tmp_path / "cut.csv.gz",
        gzip.compress((HEAD + "lamp,light,1\n" * 9999).encode())[:-20],
    )
    with pytest.raises(CorpusError, match="cannot be read"):
        read_norms(cut)
    path = write(tmp_path / "a.csv", HEAD + "lamp,light,3\n")
    with pytest.raises(CorpusError, match="no column says a country"):
        read_norms(path, country="Ireland")


@settings(max_examples=60)
@given(
    content=st.binary(max_size=300)
    | st.text(alphabet='cue,response\n\t;"123#Ra é', max_size=200)
)
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = write(tmp_path_factory.mktemp("any") / "a.csv", content)
    try:
        table = read_norms(path).table
    except CorpusError:
        return
    assert (table["count"] > 0).all()


# -------------------------------------------------------------- the sample


def test_the_sample_that_ships():
    norms = read_norms(EAT)
    assert norms.record["cues"] == 400
    assert norms.record["layout"] == "table"
    assert "Open Government" in norms.record["terms"]
    assert norms.record["left_out"].keys() <= {"same as the cue", "no response"}
    # about a hundred students each
    per_cue = norms.table.groupby("cue")["count"].sum()
    assert 80 < per_cue.mean() < 100


def test_the_whole_thesaurus():
    path = SHARED / "assoc" / "en_eat.tsv.gz"
    if not path.exists():
        pytest.skip("needs ../shared/data/assoc")
    gold = pairs(path)
    assert gold["void"]["null"] == 7
    assert gold["grandma"]["nan"] == 2
    assert gold["element"]["na"] == 1


# ------------------------------------------------------------------ splits

HASHES = {
    10_024: "a9ba13bd14446c24b3c05823b5af10ebd50f5286147a88994733edf5ed138117",
    12_271: "26bcafbb6ff19e069cfd7c22ed81a19dd0440b364c0c1a0ae97977a049799870",
    12_282: "e9b28666f3c49cda4ccdc794f8cdc1cc9ee8246b30751e7610a2e6e831fc1722",
}
SIZES = {
    10_024: (7016, 2004, 1004),
    12_271: (8589, 2454, 1228),
    12_282: (8597, 2456, 1229),
}


@pytest.mark.parametrize("n", HASHES)
def test_splits_are_those_of_the_paper(n):
    cues = [f"{position:05}" for position in range(n)]
    parts = split_cues(cues[::-1])
    assert tuple(map(len, parts.values())) == SIZES[n]
    positions = ",".join(map(str, sorted(map(int, parts["test"]))))
    assert hashlib.sha256(positions.encode()).hexdigest() == HASHES[n]
    assert sorted(sum(parts.values(), [])) == cues


# ------------------------------------------------------------------- items

ASSOCIATES = {f"word{n}": 40 - n for n in range(30)}


@pytest.mark.parametrize("lang", [*LIST_PROMPTS, "mi"])
def test_items_are_sound_in_every_language(lang):
    words = [*"港船海鱼风雨云雪山河湖花"] if lang in ("zh", "ja") else list(ASSOCIATES)
    associates = {word: 40 - n for n, word in enumerate(words)}
    chosen = WordSettings(lang=lang, tasks=("word_list", "word_ranking"))
    lines = list(word_items("cue", associates, chosen, draws=20))
    assert lines == list(word_items("cue", associates, chosen, draws=20))
    assert len({json.loads(line)["id"] for line in lines}) == len(lines)
    for line in lines:
        item = check_item(line)
        assert item.model_dump_json() == line
        if item.task == "word_list":
            parsed = parse_list(item.answer)
            assert len(parsed) == int(0.7 * len(words) + 1e-9)
            # the order is that of frequency
            assert parsed == sorted(parsed, key=lambda word: -associates[word])
        else:
            gold = [words[place] for place in read_ranking(item.answer, words).order]
            assert len(gold) == 10
            assert score_ranking(item.answer, gold).rho == 1


@given(
    words=st.lists(
        st.text("abcdefgh", min_size=1, max_size=8), min_size=2, max_size=12, unique=True
    )
)
def test_answers_are_read_back(words):
    for lang in LIST_PROMPTS:
        assert parse_list(list_answer(words, lang)) == words
        assert score_ranking(ranking_answer(words, lang), words).rho == 1


@settings(max_examples=30)
@given(m=st.integers(1, 60), draws=st.integers(1, 200), seed=st.integers(0, 99))
def test_subsamples_differ_and_have_seven_tenths(m, draws, seed):
    import numpy as np

    masks = subsamples(m, draws, np.random.default_rng(seed))
    assert 1 <= len(masks) <= draws
    assert set(masks.sum(1)) == {max(1, 7 * m // 10)}
    assert len(np.unique(masks, axis=0)) == len(masks)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    "A file of norms with 60 cues."
    table = read_norms(EAT).table
    cues = sorted(set(table["cue"]))[:60]
    path = tmp_path_factory.mktemp("norms") / "few.tsv"
    some = table[table["cue"].isin(cues)][["cue", "response", "count"]]
    some.to_csv(path, sep="\t", index=False)
    return path


BOTH = WordSettings(tasks=("word_list", "word_ranking"), budget=1200)


def contents(folder: Path) -> dict[str, bytes]:
    shards = sorted(folder.rglob("items-*.jsonl"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in shards}


def test_same_bytes_whatever_the_number_of_processes(few, tmp_path, monkeypatch):
    monkeypatch.setattr("cmining.align.items.SHARD_ITEMS", 100)
    record = make_word_items(few, tmp_path / "one", BOTH, jobs=1)
    make_word_items(few, tmp_path / "two", BOTH, jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert record["items"]["train"]["word_list"] > 700
    # what is missing is made again, the rest is not
    lost = next((tmp_path / "two" / "train").glob("items-*2.jsonl"))
    lost.unlink()
    again = make_word_items(few, tmp_path / "two", BOTH, jobs=1)
    steps = {step["step"]: step for step in again["steps"]}
    assert steps["train"]["tasks"] - steps["train"]["resumed"] == 1
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_items_export_unchanged(few, tmp_path):
    out = tmp_path / "words"
    record = make_word_items(few, out, BOTH, jobs=1)
    items, left_out = trainable_items(out / "train")
    assert not left_out
    counted = Counter(item["task"] for item in items)
    assert counted == record["items"]["train"]
    for format in ("trl", "llamafactory", "hf"):
        done = export_dataset(
            out / "train", format, tmp_path / format, validation=0, test=0
        )
        assert done["rows"]["train"] == len(items)
    card = (tmp_path / "trl" / "README.md").read_text(encoding="utf-8")
    assert "# Word-association items" in card
    row = json.loads(
        (tmp_path / "trl" / "train.jsonl").read_text("utf-8").splitlines()[0]
    )
    by_id = {item["id"]: item for item in items}
    assert row["prompt"][0]["content"] == by_id[row["id"]]["question"]
    assert row["completion"][0]["content"] == by_id[row["id"]]["answer"]
    # held-out lists are whole
    gold, about = read_gold(out, "test")
    for item in read_items(out / "test"):
        if item.task == "word_list":
            assert item.answer == ", ".join(gold[item.key])
    assert about["split"] == "test"


def test_folders_of_something_else(few, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        make_word_items(few, tmp_path, BOTH, jobs=1)
    with pytest.raises(RunError, match="tasks are word_list, word_ranking, not essay"):
        WordSettings(tasks=("essay",))
    with pytest.raises(RunError, match="has no norms of items"):
        read_gold(tmp_path)


def test_norms_table_of_nothing():
    assert norms_table({}).empty
