"""Series: texts that differ in little but names and numbers, and what becomes of them in a run."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmining.core.runs import Params, read_record, read_run
from cmining.evidence.explain import explain_entry, explain_html, explain_text
from cmining.instruct.synthesize import constellations
from cmining.mine.pipeline import mine_corpus
from cmining.mine.series import SLOT, find_series, jaccard_of, mask_texts, shingles

VILLAGES = {
    "de": "{0} ist ein Dorf im Landkreis {1}. Es hat {2} Einwohner und liegt am Fluss {1}."
    " Der Ort wurde im Jahr {2} erstmals erwähnt.",
    "en": "{0} is a village in the district of {1}. It has {2} inhabitants and lies on the"
    " river {1}. The place was first mentioned in {2}.",
    "es": "{0} es un pueblo de la provincia de {1}. Tiene {2} habitantes y está a orillas"
    " del río {1}. El lugar fue mencionado por primera vez en {2}.",
    "fr": "{0} est un village du département de {1}. Il compte {2} habitants et se trouve"
    " sur la rivière {1}. Le lieu est mentionné pour la première fois en {2}.",
    "ja": "{0}は{1}郡にある村である。人口は{2}人で、{1}川に沿って位置している。"
    "最初に記録に現れたのは{2}年のことである。",
    "zh": "{0}是{1}县下辖的一个村庄。人口为{2}人，位于{1}河沿岸。"
    "该地首次出现在记载中是在{2}年。",
}
HAN_NAMES = "青山 川口 森田 谷村 岛崎 冈部 石桥 竹内 水野 原泽".split()
NAMES = "Alba Brunn Corvo Dorne Elva Fontis Gault Hirsau Ilmen Jura".split()
# one theme, one kind of sentence, and still ten different things
FESTIVALS = [
    ("Fallas", "Paper giants burn in the streets of Valencia in the middle of March."),
    ("Gion Matsuri", "Floats as tall as houses are pulled through Kyoto in July."),
    ("Bonfire Night", "A straw figure goes up in flames while children ask for pennies."),
    ("Fasnacht", "At four in the morning all lamps go out and the drums begin."),
    (
        "Up Helly Aa",
        "A longship is dragged through Lerwick by torchlight, then set on fire.",
    ),
    ("Tomatina", "Thousands throw ripe tomatoes at each other for one hour in August."),
]


def villages(lang, n=8):
    names = HAN_NAMES if lang in ("ja", "zh") else NAMES
    rows = [(names[i], names[i - 1], 101 + 7 * i) for i in range(n)]
    return [(row[0], [VILLAGES[lang].format(*row)]) for row in rows]


def find(entries, lang):
    return find_series([t for t, _ in entries], [p for _, p in entries], lang)


@pytest.mark.parametrize("lang", VILLAGES)
def test_what_a_program_wrote_is_one_series(lang):
    series = find(villages(lang), lang)
    assert series.number.tolist() == [0] * 8
    assert series.table["size"].tolist() == [8]
    template = series.table["template"][0]
    assert SLOT in template
    assert not any(name in template for name in [*HAN_NAMES, *map(str.lower, NAMES)])
    assert not any(digit in template for digit in "0123456789")


def test_concepts_on_one_theme_are_no_series():
    concepts = [(title, [f"{title} is a festival. {text}"]) for title, text in FESTIVALS]
    assert find(concepts, "en").number.tolist() == [-1] * len(FESTIVALS)
    mixed = find([*concepts, *villages("en")], "en")
    assert mixed.number.tolist() == [-1] * len(FESTIVALS) + [0] * 8


def test_a_notice_before_the_text_makes_no_series():
    notice = (
        "This article needs more references, and you can help by adding some of them."
    )
    entries = [(title, [notice, text]) for title, text in FESTIVALS]
    assert (find(entries, "en").number == -1).all()
    # and hides none
    entries = [(title, [notice, *text]) for title, text in villages("en")]
    assert (find(entries, "en").number == 0).all()


def test_two_are_no_series_and_short_texts_are_not_judged():
    assert (find(villages("en", 2), "en").number == -1).all()
    stubs = [(name, [f"{name} is a village."]) for name in NAMES]
    assert (find(stubs, "en").number == -1).all()


@pytest.mark.parametrize("title", ["", "(", "•", "a.*", "[x](y)", "İ", "\0", "1999"])
def test_a_hostile_title_is_a_text_like_any_other(title):
    entries = [(title, [text[0]]) for _, text in villages("en")]
    assert len(mask_texts([t for t, _ in entries], [p for _, p in entries], "en")) == 8
    find(entries, "en")


WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()
TEXT = st.lists(st.sampled_from(WORDS), max_size=24).map(" ".join)


def partition(series, titles):
    members = {}
    for title, number in zip(titles, series.number.tolist()):
        if number >= 0:
            members.setdefault(number, set()).add(title)
    return {frozenset(names) for names in members.values()}


@settings(max_examples=30)
@given(
    texts=st.lists(TEXT, max_size=14),
    copies=st.integers(0, 4),
    seed=st.integers(0, 2**16),
)
def test_the_order_of_the_entries_changes_nothing(texts, copies, seed):
    entries = [(f"Q{i}", [text]) for i, text in enumerate(texts * (copies + 1))]
    entries += villages("en", 5)
    before = find(entries, "en")
    moved = list(entries)
    random.Random(seed).shuffle(moved)
    after = find(moved, "en")
    titles = [title for title, _ in entries]
    assert partition(before, titles) == partition(after, [title for title, _ in moved])
    near = dict(zip(titles, before.typicality.tolist()))
    assert [near[t] for t, _ in moved] == pytest.approx(after.typicality, nan_ok=True)


@settings(max_examples=30)
@given(texts=st.lists(TEXT, max_size=12))
def test_members_of_a_series_are_near_another_member(texts):
    texts = texts * 2
    titles = [f"Q{i}" for i in range(len(texts))]
    series = find_series(titles, [[text] for text in texts], "en")
    sets = [shingles(s, 3) for s in mask_texts(titles, [[t] for t in texts], "en")]
    for i, number in enumerate(series.number):
        others = [j for j, n in enumerate(series.number) if n == number and j != i]
        if number >= 0:
            assert len(others) >= 2
            assert max(jaccard_of(sets[i], sets[j]) for j in others) >= 0.25


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "German and English concepts about the same, and English villages besides."
    folder = tmp_path_factory.mktemp("corpus")
    english = [(t, [f"{t} is a festival. {x}"]) for t, x in FESTIVALS] + villages(
        "en", 10
    )
    german = [
        (f"Fest {i}", [f"Ein Fest mit Musik und Tanz, das {x}"]) for i, x in FESTIVALS
    ]
    for lang, entries in {"en": english, "de": german}.items():
        rows = [{"title": title, "paragraphs": text} for title, text in entries]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{lang}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def mine(corpus, out, choice, jobs=1):
    params = Params.of(
        series=choice,
        density_quantile=1.0,
        entropy_keep=1.0,
        n_groups=3,
        tau=3,
        theta=0.5,
    )
    return mine_corpus(corpus, out, params, jobs=jobs)


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for choice in ("keep", "one", "drop"):
        mine(corpus, folder / choice, choice)
    return folder


def test_the_choice_decides_and_loses_nothing(runs):
    points = {c: read_run(runs / c, "culture_points") for c in ("keep", "one", "drop")}
    entries = {c: read_run(runs / c, "entries") for c in points}
    table = read_run(runs / "keep", "series")
    assert len(table) == 1
    size = int(table["size"][0])
    assert size >= 5
    assert points["keep"]["series"].notna().sum() == size
    assert points["keep"]["series_size"].dropna().eq(size).all()
    assert points["one"]["series"].notna().sum() == 1
    assert points["one"].dropna(subset="series")["id"].tolist() == table["id"].tolist()
    assert points["drop"]["series"].isna().all()
    for choice, n_stopped in {"keep": 0, "one": size - 1, "drop": size}.items():
        stopped = entries[choice][entries[choice]["reason"] == "series"]
        assert len(stopped) == n_stopped
        assert (stopped["stage"] == "mixed").all()
        assert entries[choice]["series"].notna().sum() == size
        assert len(points[choice]) + n_stopped == len(points["keep"])
        counts = read_record(runs / choice)["counts"]
        assert sum(map(sum, (c.values() for c in counts.values()))) == len(
            entries[choice]
        )
        assert read_run(runs / choice, "series").equals(table)


def test_keep_changes_nothing_but_the_columns(runs, corpus):
    kept = read_run(runs / "keep", "culture_points")
    one = read_run(runs / "one", "culture_points")
    both = kept[kept["id"].isin(one["id"])].reset_index(drop=True)
    assert both.equals(one)


def test_workers_change_no_byte(runs, corpus, tmp_path):
    mine(corpus, tmp_path, "one", jobs=2)
    for name in ("entries", "culture_points", "series"):
        path = f"{name}.parquet"
        assert (tmp_path / path).read_bytes() == (runs / "one" / path).read_bytes()


def test_the_presets_of_the_paper_keep_all():
    assert Params.of("paper").series == "keep"
    assert Params.of("authors").series == "keep"


def test_explain_says_that_an_entry_is_one_of_a_series(runs):
    entries = read_run(runs / "one", "entries")
    stopped = entries[entries["reason"] == "series"].iloc[0]
    record = explain_entry(runs / "one", stopped["id"])
    assert not record["tests"][-1]["passed"]
    text = explain_text(record)
    assert "one of a series" in text
    assert "another member stands for it" in text
    assert record["series"]["template"][:20] in text
    assert "is a village" in explain_html(record)
    json.dumps(record)


def test_a_prompt_sees_one_member_of_a_series(runs):
    points = read_run(runs / "keep", "culture_points")
    titles = set(points.dropna(subset="series")["title"])
    for group, constellation in constellations(points).items():
        seen = [point.title for point in constellation.points]
        assert len(titles.intersection(seen)) <= 1, group


@pytest.fixture(scope="module")
def isolated(corpus, tmp_path_factory):
    "The same corpus by isolation, so loosely that every entry is selected."
    run = tmp_path_factory.mktemp("isolated")
    mine_corpus(corpus, run, Params.of(min_isolation=-4), jobs=1)
    return run


def test_a_series_is_one_finding_by_isolation_too(isolated):
    entries = read_run(isolated, "entries")
    stopped = entries[entries["reason"] == "series"]
    assert len(stopped) >= 4
    assert read_record(isolated)["barred"]["en"]["series"] == len(stopped)
    text = explain_text(explain_entry(isolated, stopped["id"].iloc[0]))
    assert "another member stands for it" in text
    assert "stopped at isolation" not in text


def test_every_stage_agrees_with_its_tests(isolated):
    for id, stage in read_run(isolated, "entries")[["id", "stage"]].itertuples(
        index=False
    ):
        tests = explain_entry(isolated, id)["tests"]
        assert all(test["passed"] for test in tests) == (stage == "culture_point")
