"""Seeds of others become points, arms have equal budgets, held-out titles are never named."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmining.core.basics import CorpusError, RunError
from cmining.core.runs import read_run
from cmining.core.scripts import fold
from cmining.instruct.checks import base_title, hold_out, named_title, read_held_out
from cmining.instruct.items import read_items
from cmining.instruct.seeds import (
    COLUMNS,
    FORMATS,
    collect_seeds,
    draw_arm,
    guess_format,
    length_step,
    read_pool,
    read_seeds,
    seed_points,
    split_options,
)
from cmining.instruct.synthesize import (
    Settings,
    open_origin,
    plan_synthesis,
    synthesize_offline,
)
from cmining.mine.pipeline import mine_corpus
from cmining.models.prompts import Endpoint

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    mine_corpus(ROOT / "data" / "sample", folder, jobs=1)
    return folder


# ---- options

# no number and stop inside, which would be a number of its own
option_text = (
    st.text("AZazäé江 ,'’-", min_size=1, max_size=20)
    .map(lambda text: " ".join(text.split()))
    .filter(bool)
)
numbering = st.sampled_from([(1, 1), (0, 1), (5, -1), (9, -1)])


@given(st.lists(option_text, min_size=2, max_size=5), numbering, st.booleans())
def test_options_come_back(texts, numbering, closing):
    "Whatever the direction and the sign behind a number."
    first, step = numbering
    sign = ")" if closing else "."
    numbers = [first + step * n for n in range(len(texts))]
    text = " ".join(f"{n}{sign} {t}" for n, t in zip(numbers, texts))
    options = split_options(f"{text} ")
    assert [option.text for option in options] == texts
    assert [option.number for option in options] == numbers


@given(
    st.lists(option_text, min_size=3, max_size=6),
    st.integers(1, 4),
    st.sampled_from([0, 1]),
)
def test_a_number_that_comes_twice_loses_no_option(texts, place, side):
    "1. 2. 4. 4. and 1. 2. 3. 3. are both four options."
    place = min(place, len(texts) - 1)
    numbers = list(range(1, len(texts) + 1))
    if side:
        numbers[place - 1] = numbers[place]
    elif place == len(texts) - 1:  # in the middle the next number would come twice
        numbers[place] = numbers[place - 1]
    text = " ".join(f"{n}. {t}" for n, t in zip(numbers, texts))
    options = split_options(text)
    assert [option.text for option in options] == texts
    assert [option.number for option in options] == list(range(1, len(texts) + 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes, no",
        "1. Yes",
        "1. 2. 3.",
        "1. Yes 2. ",
        "0 1. Yes 2. No",
        "1. a 2. b 1. c",
    ],
)
def test_what_is_no_list_of_options(text):
    with pytest.raises(CorpusError, match="options"):
        split_options(text)


@given(st.text(max_size=60))
@settings(max_examples=200)
def test_any_text_is_options_or_one_clear_error(text):
    try:
        options = split_options(text)
    except CorpusError:
        return
    assert len({option.number for option in options}) == len(options) > 1


# ---- formats

TRAP = "1. Strongly agree 2. agree 4. Disagree 4. Strongly disagree"
ROWS = {
    "culturellm": {
        "topic": "VALUES",
        "q_id": "31",
        "q_content": "So it is",
        "option": TRAP,
    },
    "culturespa": {
        "Q_id": "Q7",
        "question": "Is it important?",
        "option_lst": ["Yes", "No"],
        "class": "VALUES",
        "prompt": "",
    },
    "culturebank": {
        "cultural group": "Bavarians",
        "context": "beer gardens",
        "goal": "to save money",
        "relation": None,
        "actor": "guests",
        "actor_behavior": "bring their own food",
        "recipient": None,
        "topic": "Food",
        "agreement": "1.0",
        "num_support": "7",
    },
    "cultureatlas": {
        "0": "Malta",
        "3": "Cuisine",
        "5": "food",
        "9": "It is.",
        "10": "True",
    },
    "cube": {"name": "ftira", "country": "Malta", "domain": "cuisine", "P31": "nan"},
    "wvs": {
        "question_id": "Q1",
        "text": "How important is family?",
        "options": {"2": "Not", "1": "Very", "-1": "Don't know"},
        "category": "VALUES",
    },
    "table": {"text": "Tea is drunk at five.", "country": "England", "license": "CC0"},
}
TEXTS = {
    "culturellm": "Do you agree with this? So it is\n1. Strongly agree\n2. agree\n3. Disagree"
    "\n4. Strongly disagree",
    "culturespa": "Is it important?\n1. Yes\n2. No",
    "culturebank": "In beer gardens: guests bring their own food. Goal: to save money.",
    "cultureatlas": "It is.",
    "cube": "ftira (cuisine)",
    "wvs": "How important is family?\n1. Very\n2. Not",
    "table": "Tea is drunk at five.",
}


def write_rows(path, rows):
    "Rows in the form that the name of the file asks for."
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(pd.DataFrame(rows).to_csv(index=False).encode()))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        pd.DataFrame(rows).to_csv(path, sep=separator, index=False)
    return path


@pytest.mark.parametrize("form", ROWS)
def test_a_format_is_told_and_read(form, tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [ROWS[form]])
    record = collect_seeds(source, tmp_path / "s")
    assert record["format"] == form
    seeds = read_seeds(tmp_path / "s")
    assert list(seeds.columns) == list(COLUMNS)
    assert seeds["text"].tolist() == [TEXTS[form]]
    assert seeds["lang"].tolist() == ["en"]
    row = ROWS[form]
    culture = row.get("cultural group") or row.get("country") or row.get("0")
    assert seeds["culture"].tolist() == [culture]


def test_culturepark_is_read_as_such_when_asked(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [ROWS["culturellm"]])
    collect_seeds(source, tmp_path / "s", "culturepark")
    assert read_seeds(tmp_path / "s")["source"][0].startswith("CulturePark")


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.csv.gz"]
)
def test_files_of_all_kinds_say_the_same(name, tmp_path):
    rows = [ROWS["table"], {"text": "Soup, “hot”.", "country": None, "license": "CC0"}]
    record = collect_seeds(write_rows(tmp_path / name, rows), tmp_path / "s")
    seeds = read_seeds(tmp_path / "s")
    assert seeds["text"].tolist() == ["Tea is drunk at five.", "Soup, “hot”."]
    assert seeds["culture"].tolist() == ["England", None]
    assert seeds["licence"].tolist() == ["CC0", "CC0"]
    assert record["cultures"] == {"England": 1}


def test_a_folder_of_files(tmp_path):
    (tmp_path / "in").mkdir()
    for n in range(2):
        write_rows(tmp_path / "in" / f"{n}.jsonl", [{"text": f"Tea is drunk at {n}."}])
    record = collect_seeds(tmp_path / "in", tmp_path / "s")
    assert record["seeds"] == len(record["inputs"]) == 2


def test_nothing_is_lost_without_a_reason(tmp_path):
    rows = [
        ROWS["cultureatlas"],
        ROWS["cultureatlas"] | {"10": "False", "9": "It is not."},
        ROWS["cultureatlas"],
        ROWS["cultureatlas"] | {"9": ""},
        ROWS["cultureatlas"] | {"9": "Canary GUID 26b5c67b"},
    ]
    record = collect_seeds(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "s")
    assert record["rows"] == record["seeds"] + sum(record["left_out"].values()) == 5
    assert record["left_out"]["a sentence that was made false"] == 1
    assert record["left_out"]["a text that is there already"] == 1
    assert record["left_out"]["no 9"] == 1
    assert any("canary" in reason for reason in record["left_out"])


def test_languages_of_a_question(tmp_path):
    row = {
        "question_id": "Q1",
        "topic": "VALUES",
        "text": {"en": "How important is family?", "zh": "家庭有多重要？"},
        "options": {"en": ["1. Very", "2. Not"], "zh": ["1. 重要", "2. 不重要"]},
        "distributions": {"CHN": [0.9, 0.1]},
    }
    collect_seeds(write_rows(tmp_path / "a.jsonl", [row]), tmp_path / "s")
    seeds = read_seeds(tmp_path / "s")
    assert seeds["lang"].tolist() == ["en", "zh"]
    assert seeds["text"][1] == "家庭有多重要？\n1. 重要\n2. 不重要"
    assert not any("0.9" in text for text in seeds["text"])  # answers are for evaluation


def write(content):
    def make(path):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.jsonl", write('{"text": "a"}\n{"text": '), "a.jsonl, line 2 is no JSON"),
        ("a.jsonl", write('{"text": "a"}\n["b"]\n'), "line 2 is no JSON object"),
        ("a.jsonl", write('{"text": "a"}\n{"txt": "b"}\n'), "line 2 has no text"),
        ("a.jsonl", write('{"text": {"a": "b"}}\n'), "line 1: text is a dict"),
        ("a.jsonl", write(""), "has no rows"),
        ("a.jsonl", write('{"text": " "}\n'), "gives a seed as table .1: no text"),
        ("a.jsonl", write(b"\xff\xfe\x00"), "a.jsonl"),
        ("a.json", write('{"text": "a"}'), "no JSON array"),
        ("a.json", write("[" * 100_000), "nested too deeply"),
        ("a.csv", write("text\na\nb,c,d\n"), "line 3"),
        ("a.csv", write("texte,pays\na,b\n"), "by which no format is known"),
        ("a.csv", write(b"text\n\xe9\n"), "UTF-8"),
        ("a.csv", write(""), "a.csv cannot be read"),
        ("a.parquet", write("PAR1"), "a.parquet cannot be read"),
        ("a.jsonl.gz", write("no gzip"), "a.jsonl.gz cannot be read"),
        ("a.xlsx", write("x"), "is no file of seeds"),
        ("a.json", lambda path: None, "there is no"),
        (
            "a.jsonl",
            write('{"q_content": "So?", "option": "yes or no"}\n'),
            "line 1: 'yes or no' are no options",
        ),
        (
            "a.jsonl",
            write('{"question": "So?", "option_lst": "yes"}\n'),
            "line 1: option_lst is no list",
        ),
        (
            "a.jsonl",
            write('{"question_id": "1", "text": "So?", "options": {"a": "yes"}}\n'),
            "line 1: an option has no number",
        ),
        ("a.jsonl", write('{"text": "a", "lang": "xx-1"}\n'), "xx-1"),
    ],
)
def test_malformed_files_give_one_clear_error(name, make, message, tmp_path):
    make(tmp_path / name)
    with pytest.raises((CorpusError, RunError), match=message) as error:
        collect_seeds(tmp_path / name, tmp_path / "s")
    assert len(str(error.value)) < 900
    assert not (tmp_path / "s" / "seeds.parquet").exists()


def test_an_unknown_format_and_a_foreign_folder(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [ROWS["table"]])
    with pytest.raises(RunError, match="formats are culturellm"):
        collect_seeds(source, tmp_path / "s", "excel")
    with pytest.raises(RunError, match="no folder of seeds"):
        collect_seeds(source, tmp_path)
    with pytest.raises(CorpusError, match="needs|no format|has no"):
        collect_seeds(source, tmp_path / "s", "cube")
    collect_seeds(source, tmp_path / "s")
    first = (tmp_path / "s" / "seeds.parquet").read_bytes()
    collect_seeds(source, tmp_path / "s")  # over itself
    assert (tmp_path / "s" / "seeds.parquet").read_bytes() == first


@given(st.dictionaries(st.text(max_size=12), st.none(), max_size=5))
def test_columns_are_a_format_or_an_error(columns):
    try:
        assert guess_format(columns) in FORMATS
    except CorpusError as e:
        assert "no format is known" in str(e)


# ---- items from seeds

DISHES = {
    "Malta": ["ftira", "pastizzi", "kapunata", "imqaret", "stuffat tal-fenek"],
    "Peru": ["ceviche", "causa", "anticuchos", "lomo saltado", "cuy"],
    "Japan": ["oden", "soba", "tempura", "chawanmushi", "udon"],
    "Nigeria": ["jollof rice", "egusi", "suya", "moin moin", "akara"],
}


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cube")
    rows = [
        {"name": name, "country": country, "domain": "cuisine"}
        for country, names in DISHES.items()
        for name in names
    ]
    collect_seeds(write_rows(folder / "cube.json", rows), folder / "seeds")
    return folder / "seeds"


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    scales = ["1. Yes 2. No", "1. Often 2. Seldom 3. Never", "1. Much 2. Little", TRAP]
    rows = [
        {
            "topic": "T",
            "q_id": f"{n}",
            "q_content": f"Is it so with {n}?",
            "option": scale,
        }
        for n, scale in enumerate(scales * 3)
    ]
    collect_seeds(write_rows(folder / "WVQ.jsonl", rows), folder / "seeds")
    return folder / "seeds"


def test_offline_items_of_artefacts_attribute_them(cube, tmp_path):
    record = synthesize_offline(cube, tmp_path / "d")
    items = list(read_items(tmp_path / "d"))
    assert record["arm"] == "cube"
    assert len(items) == record["items"] == 60  # three tasks of each
    home = {name: country for country, names in DISHES.items() for name in names}
    for item in items:
        (point,) = item.culture_points
        country = home[point.title]
        assert point.title in item.question
        if item.task == "single_choice":
            assert item.options["ABCD".index(item.answer)] == country
            assert set(item.options) == set(DISHES)
        elif item.task == "true_false":
            assert item.answer == (f": {country}." in item.question)
        else:
            assert item.answer == country


def test_offline_items_of_a_survey_invent_no_answer(survey, tmp_path):
    synthesize_offline(survey, tmp_path / "d")
    items = list(read_items(tmp_path / "d"))
    texts = dict(read_seeds(survey)[["id", "text"]].itertuples(index=False))
    assert {item.task for item in items} == {
        "single_choice",
        "true_false",
        "short_answer",
    }
    for item in items:
        (point,) = item.culture_points
        question, *lines = texts[point.id].split("\n")
        offered = "; ".join(line.partition(". ")[2] for line in lines)
        assert question in item.question
        if item.task == "single_choice":
            assert item.options["ABCD".index(item.answer)] == offered
        elif item.task == "true_false":
            assert item.answer == (f": {offered}." in item.question)
        else:
            assert item.answer == offered


def test_a_culture_is_masked_in_its_text(tmp_path):
    rows = [
        ROWS["culturebank"]
        | {"cultural group": group, "actor": f"{group} people", "context": f"a town {n}"}
        for n, group in enumerate(["Bavarian", "Maltese", "Peruvian", "Japanese"])
    ]
    collect_seeds(write_rows(tmp_path / "a.csv", rows), tmp_path / "s")
    synthesize_offline(tmp_path / "s", tmp_path / "d", Settings(tasks=("short_answer",)))
    items = list(read_items(tmp_path / "d"))
    assert {item.answer for item in items} == {
        "Bavarian",
        "Maltese",
        "Peruvian",
        "Japanese",
    }
    for item in items:
        assert "____" in item.question
        assert item.answer not in item.question


def test_a_table_with_long_texts_is_asked_about_as_an_encyclopedia(tmp_path):
    sample = ROOT / "data" / "sample" / "en.jsonl"
    entries = [json.loads(line) for line in sample.open(encoding="utf-8")][:30]
    rows = [
        {"title": e["title"], "text": "\n\n".join(e["paragraphs"]), "lang": "en"}
        for e in entries
    ]
    collect_seeds(write_rows(tmp_path / "a.parquet", rows), tmp_path / "s")
    record = synthesize_offline(tmp_path / "s", tmp_path / "d")
    assert record["items"] > 30
    assert record["arm"] == "s"  # a plain table is named after its folder


def test_seeds_of_which_nothing_can_be_asked(tmp_path):
    rows = [{"text": "Somebody does something."}]
    collect_seeds(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "s")
    with pytest.raises(RunError, match="without a model"):
        synthesize_offline(tmp_path / "s", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    plan = plan_synthesis(tmp_path / "s", Endpoint("toy"), Settings(limit=1))
    assert plan["possible"] > 0
    for wrong, message in (
        ({"arm": "mono"}, "no arm"),
        ({"kinds": ("concept",)}, "no kinds"),
    ):
        with pytest.raises(RunError, match=message):
            synthesize_offline(tmp_path / "s", tmp_path / "d", Settings(**wrong))


def test_prompts_about_seeds_have_their_own_frame(survey, run):
    settings = Settings(limit=3)
    assert "encyclopedia" not in open_origin(survey, settings).frame
    assert "encyclopedia" in open_origin(run, settings).frame


def test_seed_points_stay_with_their_culture(cube):
    seeds = read_seeds(cube)
    points = seed_points(seeds).merge(seeds[["id", "culture"]], on="id")
    assert (points.groupby("group")["culture"].nunique() == 1).all()
    assert len(points) == len(seeds)
    pd.testing.assert_frame_equal(seed_points(seeds), seed_points(seeds))


# ---- arms


@pytest.mark.parametrize("arm", ["mono", "random"])
def test_arms_have_the_budget_of_the_culture_points(run, arm):
    points = read_run(run, "culture_points")
    drawn = draw_arm(run, points, arm)
    assert (
        drawn.groupby("lang").size().to_dict() == points.groupby("lang").size().to_dict()
    )
    assert not drawn.duplicated(["lang", "id"]).any()
    for lang in points["lang"].unique():
        pool = read_pool(run, lang).set_index("id")["step"]
        of_points = pool[points.loc[points["lang"] == lang, "id"]].value_counts()
        of_drawn = pool[drawn.loc[drawn["lang"] == lang, "id"]].value_counts()
        assert of_points.to_dict() == of_drawn.to_dict()
    # themes as the culture points have them
    assert drawn.groupby("group")["lang"].nunique().max() == 1
    assert abs(drawn["group"].nunique() - points["group"].nunique()) <= 6


def test_arms_draw_from_where_they_say(run):
    points, entries = read_run(run, "culture_points"), read_run(run, "entries")
    stage = entries.set_index(["lang", "id"])["stage"]
    mono = draw_arm(run, points, "mono")
    stages = {stage[key] for key in zip(mono["lang"], mono["id"])}
    assert not stages & {"pruned", "sparse", "incoherent"}
    random = draw_arm(run, points, "random")
    assert "pruned" in {stage[key] for key in zip(random["lang"], random["id"])}
    assert "culture_point" not in stages or len(stages) > 1


def test_arms_depend_on_the_seed_alone(run):
    points = read_run(run, "culture_points")
    first = draw_arm(run, points, "random", seed=1)
    pd.testing.assert_frame_equal(first, draw_arm(run, points, "random", seed=1))
    shuffled = points.sample(frac=1, random_state=0)
    again = draw_arm(run, shuffled, "random", seed=1)
    pd.testing.assert_frame_equal(first, again)
    assert set(first["id"]) != set(draw_arm(run, points, "random", seed=2)["id"])


def test_arms_give_comparable_numbers_of_items(run, tmp_path):
    "By construction the same with a limit, and nearly so without."
    counts = {}
    one_task = Settings(tasks=("short_answer",))
    for arm in ("full", "mono", "random"):
        record = synthesize_offline(run, tmp_path / arm, replace(one_task, arm=arm))
        counts[arm] = record["items"]
        assert record["arm"] == arm
        limited = replace(one_task, arm=arm, limit=60)
        record = synthesize_offline(run, tmp_path / f"{arm}-60", limited)
        assert set(record["languages"].values()) == {10}
    assert max(counts.values()) < 1.1 * min(counts.values()), counts


def test_arms_need_the_work_of_a_run(run, tmp_path):
    for name in (
        "run.json",
        "entries.parquet",
        "culture_points.parquet",
        "groups.parquet",
    ):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(RunError, match="work was cleaned"):
        synthesize_offline(tmp_path, tmp_path / "d", Settings(arm="random"))


def test_arms_of_some_kinds(run):
    settings = Settings(arm="random", kinds=("concept",))
    drawn, of_kind = (
        open_origin(run, settings),
        open_origin(run, Settings(kinds=("concept",))),
    )
    assert len(drawn.points) == len(of_kind.points)


def test_steps_of_length():
    assert length_step(pd.Series([0, 1, 2, 4]).to_numpy()).tolist() == [-1, 0, 2, 4]


# ---- held-out titles


@pytest.mark.parametrize("arm", ["full", "random"])
def test_held_out_titles_are_never_named(run, arm, tmp_path):
    points = read_run(run, "culture_points")
    titles = (
        points.groupby("lang")["title"].apply(lambda t: list(t)[::5]).explode().tolist()
    )
    rows = [{"concept": title, "question": "?"} for title in titles]
    write_rows(tmp_path / "concepts.jsonl", rows)
    settings = Settings(arm=arm, without=(tmp_path / "concepts.jsonl",))
    record = synthesize_offline(run, tmp_path / "d", settings)
    assert record["points"]["held out"] == len(titles)
    assert record["points"]["used"] == len(points) - len(titles)
    assert record["rejects"].get("held out", 0) > 0 or arm == "random"
    assert record["without"][0]["name"] == "concepts.jsonl"
    names = {fold(base_title(title)) for title in titles}
    long = [name for name in names if len(name) > 4]
    for item in read_items(tmp_path / "d"):
        shown = [item.question, str(item.answer), item.explanation, *(item.options or ())]
        for point in (*item.culture_points, *item.distractors):
            assert fold(base_title(point.title)) not in names
            shown.append(point.title)
        # looked for another way than the library does: word for word, not across words
        for text in shown:
            folded = " ".join(fold(word) for word in text.split())
            assert not [name for name in long if name in folded], text


def test_short_titles_are_held_out_as_words():
    held_out = hold_out(["Go", "No", "能"])
    assert named_title(["Sie spielt Go."], held_out)
    assert named_title(["Gold"], held_out) is None
    assert named_title(["可能"], held_out) is None
    assert named_title(["能"], held_out)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"question": "?"}\n', "line 1 names no title"),
        ("a.jsonl", '"Go"\n{"title": 7}\n', "line 2 names no title"),
        ("a.jsonl", "Go\n", "line 1 is no JSON"),
        ("a.txt", "\n", "names no title"),
    ],
)
def test_malformed_files_of_titles(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_held_out([tmp_path / name])


def test_overlap_with_benchmarks_is_told(run, tmp_path):
    few = Settings(tasks=("short_answer",), limit=60)
    plain = synthesize_offline(run, tmp_path / "a", few)
    assert "overlap" not in plain
    taken = list(read_items(tmp_path / "a"))[:5]
    rows = [{"question": item.question, "answer": str(item.answer)} for item in taken]
    bench = write_rows(tmp_path / "bench.jsonl", rows)
    record = synthesize_offline(run, tmp_path / "b", replace(few, against=(bench,)))
    assert record["items"] == 60
    assert record["rejects"] == {"contamination": 5}
    assert record["overlap"] == {"compared": 65, "contaminated": 5, "share": 0.0769}
    assert record["arm"] == "full"


# ---- real sources


@real
def test_cube_1k(tmp_path):
    record = collect_seeds(SHARED / "gold" / "cube_1k.json", tmp_path / "s")
    assert record["format"] == "cube"
    assert record["rows"] == 1002 == record["seeds"] + sum(record["left_out"].values())
    assert len(record["cultures"]) == 8
    items = synthesize_offline(tmp_path / "s", tmp_path / "d", Settings(limit=300))
    assert items["items"] == 300


@real
@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("wvs7_questions", 230),
        ("culturepark_aggregates", 170),
        ("lilyflower_wvs7_clean", 250),
    ],
)
def test_world_values_survey(name, at_least, tmp_path):
    record = collect_seeds(SHARED / "survey" / f"{name}.jsonl", tmp_path / "s")
    assert record["format"] == "wvs"
    assert record["seeds"] >= at_least, record["left_out"]
    seeds = read_seeds(tmp_path / "s")
    assert not seeds["text"].str.contains("Don't know|No answer").any()
