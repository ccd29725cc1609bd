"""What holds of replies whatever a server sends: any JSON, any words, any refusal."""

import json

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from cmining.instruct.checks import Reject
from cmining.instruct.items import Draft, Point
from cmining.instruct.synthesize import SCHEMAS, Constellation, Request, read_reply
from cmining.models import llm

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values),
    max_leaves=6,
)
NAMES = ["type", "text", "content", "value", "json", "thinking", "thought", "refusal"]
KINDS = ["text", "output_text", "thinking", "reasoning", "refusal", "image_url", "json"]
PARTS = st.recursive(
    st.text(max_size=5) | st.none() | st.integers(),
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES), parts | st.sampled_from(KINDS))
    ),
    max_leaves=8,
)
USAGES = JSON | st.fixed_dictionaries({"prompt_tokens": JSON, "completion_tokens": JSON})
MESSAGES = st.fixed_dictionaries(
    {"content": PARTS},
    optional={"refusal": JSON, "tool_calls": JSON, "reasoning_content": JSON},
)
PROMPT = llm.Prompt("key", ({"role": "user", "content": "Why?"},), max_tokens=50)
PRICE = {"in": 1.0, "out": 2.0}


@given(JSON)
def test_anything_is_an_answer_or_none(completion):
    assert llm.has_answer(completion) in (True, False)


@settings(max_examples=300)
@given(MESSAGES, USAGES, JSON, JSON)
def test_any_completion_is_a_text_or_an_error(message, usage, finish, model):
    choice = {"message": message, "finish_reason": finish}
    completion = {"choices": [choice], "usage": usage, "model": model}
    assert llm.has_answer(completion)
    reply = llm.parse_completion(completion, PROMPT, "text", PRICE).reply
    assert (reply.text is None) != (reply.error is None)
    assert reply.text is None or reply.text.strip()
    assert 0 <= reply.prompt_tokens <= llm.MOST_TOKENS
    assert 0 <= reply.usd < float("inf")
    json.dumps(reply.__dict__)


@given(st.text(), st.sampled_from([*SCHEMAS]))
def test_any_text_gives_an_object_or_stays(text, task):
    found = llm.find_json(text, SCHEMAS[task])
    assert found is None or isinstance(found, dict)
    extracted = llm.extract_reply(text, SCHEMAS[task])
    assert extracted == text or isinstance(json.loads(extracted), dict)


BROKEN = st.lists(
    st.sampled_from(
        [
            '{"question": "',
            '"}',
            "{",
            "}",
            "[",
            '"',
            "\\",
            "<think>",
            "</think>",
            "```",
            "a",
        ]
    ),
    max_size=20,
).map("".join)


@given(BROKEN)
def test_broken_json_around_an_answer_does_not_hide_it(words):
    answer = {"answer": "A", "why": "{"}
    schema = {"type": "object", "required": ["answer", "why"]}
    prose = words.replace("{", "(").replace("<think>", "")
    assert llm.find_json(f"{prose}\n{json.dumps(answer)}", schema) == answer


@given(JSON, st.text(max_size=40))
def test_any_error_names_known_parameters(body, message):
    assert set(llm.refused_params(body, message)) <= {
        *llm.PARAM_FALLBACKS,
        "response_format",
    }


@pytest.mark.parametrize("name", ["seed", "temperature", "max_tokens"])
@given(st.data())
def test_a_refused_parameter_is_found_in_any_dialect(name, data):
    quote = data.draw(st.sampled_from(["'", '"', "`", ""]))
    named = f"{quote}{name}{quote}"
    message = data.draw(
        st.sampled_from(
            [
                f"Unsupported parameter: {named} is not supported with this model.",
                f"Unknown parameter: {named}.",
                f"Unrecognized request argument supplied: {named}",
                f"{named}: Extra inputs are not permitted",
                f"property {named} is unsupported",
                f"body.{name}: extra fields not permitted",
                f"{named} is no longer supported",
                f"got an unexpected keyword argument {named}",
                f"{named} is deprecated for this model",
                f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.',
            ]
        )
    )
    assert llm.refused_params({}, message)[:1] == [name]
    assert llm.refused_params({"param": name}, "no")[:1] == [name]
    assert llm.refused_params({"detail": [{"loc": ["body", name]}]}, "no")[:1] == [name]


TWO_ROLES = [
    "System role not supported",
    "'system' role is not supported by this model",
    "Only user and assistant roles are supported!",
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "This model does not support: the system message is not allowed",
]


@pytest.mark.parametrize("message", TWO_ROLES)
def test_a_template_of_two_roles_is_known(message):
    assert llm.refused_params({}, message) == ["system"]
    system = {"role": "system", "content": "You write questions."}
    user = {"role": "user", "content": "Notes."}
    prompt = llm.Prompt("key", (system, user))
    body = llm.request_body(prompt, "m", params={"system": None})
    whole = "You write questions.\n\nNotes."
    assert body["messages"] == [{"role": "user", "content": whole}]
    assert "system" not in body


CONSTELLATION = Constellation((Point(id="1", lang="en", title="Tea"),), ("Tea is hot.",))
REPLIES = st.dictionaries(
    st.sampled_from(["question", "statement", "options", "answer", "explanation"]),
    JSON | st.fixed_dictionaries(dict.fromkeys("ABCD", st.text())),
)


@given(
    REPLIES | JSON, st.sampled_from([*SCHEMAS]), st.sampled_from(["stop", "length", ""])
)
def test_any_reply_is_a_draft_or_a_reject_with_a_reason(answer, task, finish):
    request = Request(task, "en", 0, 0, True)
    reply = llm.Reply("key", json.dumps(answer), None, "m", finish=finish)
    draft = read_reply(reply, request, CONSTELLATION, "run")
    assert isinstance(draft, (Draft, Reject))
    if isinstance(draft, Reject):
        assert draft.reason
