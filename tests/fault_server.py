"""An OpenAI-compatible server that fails on purpose, for tests.

`python tests/fault_server.py --faults 0.2` prints its port. It answers any chat request
with an object made to fit the request's JSON schema (or what `--answer file.py:function`
returns for the request's body), and a share of requests with one of FAULTS instead. Which
ones is decided by the seed, the prompt, and how often it was seen: the same run meets the
same faults. GET /stats tells what it has seen; a request counts as `taken` when the
client has used the connection again after the answer, and so has read it to its end. POST
/stats changes settings. Batch files are served as well. Only 127.0.0.1, nothing but the
standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import html
import importlib.util
import json
import random
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from pathlib import Path
from typing import Any

NO_ANSWER = ("429", "500", "hang", "cut", "html", "garbage")  # asked again
# an answer, and paid for
BAD_ANSWER = ("refusal", "truncated", "wrong", "language", "prose")
FAULTS = NO_ANSWER + BAD_ANSWER
FOREIGN = "Это ответ на совсем другом языке, чем просили."


def fill(schema: dict[str, Any], rng: random.Random) -> Any:
    "A value that fits a JSON schema."
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            return {k: fill(s, rng) for k, s in schema.get("properties", {}).items()}
        case "array":
            return [
                fill(schema.get("items", {}), rng)
                for _ in range(max(schema.get("minItems", 1), 1))
            ]
        case "integer" | "number":
            return rng.randint(
                int(schema.get("minimum", 0)), int(schema.get("maximum", 100))
            )
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
    return " ".join(
        rng.choice(("tea", "river", "drum", "lantern", "harvest", "mask"))
        for _ in range(max(3, schema.get("minLength", 0) // 3))
    )


def spoil(value: Any, fault: str) -> Any:
    "The object with another language in its strings, or a letter that was no option."
    if isinstance(value, dict):
        return {k: spoil(v, fault) for k, v in value.items()}
    if isinstance(value, list):
        return [spoil(v, fault) for v in value]
    if not isinstance(value, str):
        return value
    if fault == "wrong" and len(value) == 1:
        return "Q"
    if fault == "language" and len(value) > 1:
        return FOREIGN
    return value


def schema_of(body: dict[str, Any]) -> dict[str, Any]:
    "The schema a request asks for, by response_format or in its last message."
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        return form["json_schema"]["schema"]
    text = body["messages"][-1]["content"]
    try:
        return json.loads(text[text.rindex('\n{"') :])
    except ValueError:
        return {"type": "object", "properties": {"answer": {"type": "string"}}}


def default_answer(body: dict[str, Any]) -> str:
    return json.dumps(
        fill(schema_of(body), random.Random(json.dumps(body["messages"]))),
        ensure_ascii=False,
    )


class State:
    "What the server is told to do, and what it has seen."

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.answer: Callable[[dict[str, Any]], str] = default_answer
        if options.answer:
            path, function = options.answer.rsplit(":", 1)
            spec = importlib.util.spec_from_file_location("answers", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self.answer = getattr(module, function)
        self.seen: Counter[str] = Counter()  # prompt -> requests
        self.asked_again: Counter[str] = (
            Counter()
        )  # prompt -> of those, how many are counted
        self.sent: Counter[str] = Counter()  # prompt -> answers sent to the last byte
        # prompts whose answer the client has read to its end
        self.taken: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}

    def stats(self) -> dict[str, Any]:
        return {
            "requests": 0,
            "batch_answers": 0,
            **self.counts,
            "prompts": len(self.seen),
            "answered": sum(self.sent.values()),
            "answered_prompts": len(self.sent),
            "in_flight": self.counts["began"] - self.counts["ended"],
            "batches": list(self.batches.values()),
        }

    def choose(self, prompt: str) -> str | None:
        "The fault of this request, if it has one."
        o = self.options
        rng = random.Random(f"{o.seed} {prompt} {self.seen[prompt]}")
        return rng.choice(o.kinds.split(",")) if rng.random() < o.faults else None

    def refuses(self, body: dict[str, Any]) -> int:
        "The HTTP status for a response_format that is not supported."
        form = (body.get("response_format") or {}).get("type")
        if form is None or form in self.options.supports.split(","):
            return 0
        return self.options.unsupported

    def completion(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
        text = self.answer(body)
        message = {"role": "assistant"}
        if (body.get("response_format") or {}).get("type") not in (
            None,
            *self.options.supports.split(","),
        ):
            text = "I have not heard of response formats."
        if fault == "truncated":
            text = text[: len(text) // 2]
        if fault in ("wrong", "language"):
            text = json.dumps(spoil(json.loads(text), fault), ensure_ascii=False)
        if fault == "prose":
            text = f"Of course! Here you are:\n```json\n{text}\n```\nAnything else?"
        message |= (
            {"content": None, "refusal": "I cannot help with that."}
            if fault == "refusal"
            else {"content": text}
        )
        used = {
            "prompt_tokens": len(json.dumps(body["messages"])) // 4,
            "completion_tokens": len(text) // 4 + 1,
        }
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "usage": used | {"total_tokens": sum(used.values())},
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "length" if fault == "truncated" else "stop",
                    "message": message,
                }
            ],
        }


def page(
    status: int, data: Any, kind: str = "application/json", extra: str = ""
) -> bytes:
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return (
        f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length:"
        f" {len(data)}\r\n{extra}\r\n".encode()
        + data
    )


def error(status: int, message: str, extra: str = "", **more: Any) -> bytes:
    return page(
        status, {"error": {"message": message, "type": "error", **more}}, extra=extra
    )


def answer_page(
    state: State, body: dict[str, Any], headers: dict[str, str], fault: str | None
) -> bytes:
    "The page for a chat request: an answer, or an error by the options or the fault."
    o = state.options
    if o.echo_key:
        bearer = WRITERS[o.echo_as](headers.get("authorization", ""))
        return error(o.echo_status, f"bad header {bearer}")
    if o.refuse:
        status, code, *lines = o.refuse
        extra = "".join(f"{line}\r\n" for line in lines)
        return error(status, "no", code=code, extra=extra)
    if o.strict_params and "max_tokens" in body:
        return error(
            400,
            "Unsupported parameter: use max_completion_tokens",
            param="max_tokens",
            code="unsupported_parameter",
        )
    for name in filter(None, o.refuses.split(",")):
        if name in body:
            return DIALECTS[o.dialect](name)
    if status := state.refuses(body):
        return error(status, "response_format is not supported")
    if fault == "429":
        return error(429, "slow down", extra="retry-after: 0.05\r\n")
    if fault == "500":
        return error(500, "out of luck")
    if fault == "html":
        return page(200, b"<html><h1>Bad gateway</h1></html>", "text/html")
    if fault == "garbage":
        return page(200, b'{"id": "c", "choices": [{"me')
    return page(200, state.completion(body, fault))


# How a program may write what it was sent into a message
WRITERS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "repr": lambda text: repr(text.encode()),
    "json": json.dumps,
    "json in json": lambda text: json.dumps(json.dumps({"header": text})),
    "url": lambda text: urllib.parse.quote(text, safe=""),
    "html": html.escape,
    "escaped": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
}


def extra_forbidden(name: str) -> list[dict[str, Any]]:
    "What pydantic says about a field that it does not know."
    message = "Extra inputs are not permitted"
    return [{"type": "extra_forbidden", "loc": ["body", name], "msg": message}]


# How servers refuse a parameter
DIALECTS: dict[str, Callable[[str], bytes]] = {
    "openai": lambda name: error(400, f"Unsupported parameter: {name}", param=name),
    "gateway": lambda name: error(
        400,
        f"BadRequestError: Unsupported parameter: '{name}' is not supported with this"
        f" model. Use 'another_{name}' instead.",
        param=None,
    ),
    "value": lambda name: error(
        400, f"Unsupported value: '{name}' does not support 0.7 with this model."
    ),
    "nested": lambda name: page(
        422, {"message": {"detail": extra_forbidden(name)}, "param": None}
    ),
    "pydantic": lambda name: page(422, {"detail": extra_forbidden(name)}),
    "pydantic text": lambda name: error(400, str(extra_forbidden(name))),
    "place": lambda name: error(422, "Invalid request", param=f"body.{name}"),
    "list": lambda name: page(
        400, [{"error": {"message": f'Unknown name "{name}": Cannot find field.'}}]
    ),
    "rust": lambda name: error(
        422,
        f"unknown field `{name}`, expected one of `model`, `messages`,"
        " `temperature`, `max_tokens`, `seed`",
    ),
    "string": lambda name: page(400, {"error": f"Unrecognized request argument: {name}"}),
    "plain": lambda name: page(400, f"{name} is not allowed here".encode(), "text/plain"),
}


async def chat(
    state: State,
    body: dict[str, Any],
    headers: dict[str, str],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> str | None:
    "Answer one chat request. Returns the prompt if it was answered in full."
    messages = json.dumps(body["messages"]).encode()
    prompt = hashlib.blake2b(messages, digest_size=8).hexdigest()
    state.counts["again_taken"] += prompt in state.taken
    # Each answer that was sent and asked for again counts once, however often it is retried.
    state.counts["again_sent"] += state.sent[prompt] > state.asked_again[prompt]
    state.asked_again[prompt] = state.sent[prompt]
    fault = state.choose(prompt)
    state.seen[prompt] += 1
    state.counts.update(["requests", f"fault_{fault}"])
    if state.options.latency:
        await asyncio.sleep(state.options.latency)
    # the client has gone meanwhile: nobody to answer
    if reader.at_eof():
        raise ConnectionError
    reply = answer_page(state, body, headers, fault)
    answered = reply.startswith(b"HTTP/1.1 200")
    if answered and fault in ("hang", "cut"):
        writer.write(reply[:40] if fault == "hang" else reply[:-20])
        await writer.drain()
        if fault == "hang":
            await asyncio.sleep(state.options.hang)
        raise ConnectionError
    writer.write(reply)
    await writer.drain()
    if not answered or fault in ("html", "garbage"):
        return None
    state.sent[prompt] += 1
    return prompt


def run_batch(state: State, batch: dict[str, Any]) -> None:
    "Answer a batch, but for the share of requests that the option leaves out."
    answers = []
    errors = []
    for line in state.files[batch["input_file_id"]].splitlines():
        request = json.loads(line)
        custom_id = request["custom_id"]
        rng = random.Random(f"{batch['id']} {custom_id}")
        if rng.random() < state.options.expire:
            continue
        if request["body"]["messages"][-1]["content"].startswith("bad"):
            body = {"error": {"message": "bad request"}}
            errors.append(batch_result(custom_id, 400, body))
        else:
            state.counts["batch_answers"] += 1
            body = state.completion(request["body"], None)
            answers.append(batch_result(custom_id, 200, body))
    for name, results in (("output_file_id", answers), ("error_file_id", errors)):
        if results:
            batch[name] = f"file-{len(state.files)}"
            state.files[batch[name]] = b"".join(reversed(results))
    batch["status"] = "expired" if state.options.expire else "completed"


def batch_result(custom_id: str, status: int, body: dict[str, Any]) -> bytes:
    response = {"status_code": status, "body": body}
    result = {"custom_id": custom_id, "response": response, "error": None}
    return json.dumps(result).encode() + b"\n"


def upload(state: State, headers: dict[str, str], data: bytes) -> bytes:
    "Keep the file of a form."
    head = f"content-type: {headers['content-type']}\r\n\r\n".encode()
    parts = BytesParser().parsebytes(head + data).get_payload()
    id = f"file-{len(state.files)}"
    state.files[id] = next(p.get_payload(decode=True) for p in parts if p.get_filename())
    return page(
        200,
        {
            "id": id,
            "object": "file",
            "bytes": len(state.files[id]),
            "created_at": 0,
            "filename": "x",
            "purpose": "batch",
            "status": "processed",
        },
    )


def make_batch(state: State, data: bytes) -> bytes:
    "Take a batch, which is answered when it is looked at."
    request = json.loads(data)
    id = f"batch-{len(state.batches)}"
    state.batches[id] = {
        "id": id,
        "object": "batch",
        "created_at": 0,
        "status": "in_progress",
        "completion_window": "24h",
        "endpoint": request["endpoint"],
        "input_file_id": request["input_file_id"],
        "metadata": request.get("metadata"),
        "errors": None,
        "output_file_id": None,
        "error_file_id": None,
    }
    if state.options.lose_batch:
        return error(500, "the batch was made, but you will not hear of it")
    return page(200, state.batches[id])


def manage(
    state: State, method: str, path: str, headers: dict[str, str], data: bytes
) -> bytes:
    "Everything but chat: statistics, files, batches."
    path = path.partition("?")[0]
    if path == "/stats":
        if method == "POST":
            vars(state.options).update(json.loads(data))
        return page(200, state.stats())
    if path == "/v1/files" and method == "POST":
        return upload(state, headers, data)
    if path.startswith("/v1/files/"):
        return page(200, state.files[path.split("/")[3]], "application/octet-stream")
    if path == "/v1/batches" and method == "POST":
        return make_batch(state, data)
    if path == "/v1/batches":
        batches = list(state.batches.values())
        return page(200, {"object": "list", "data": batches, "has_more": False})
    if path.startswith("/v1/batches/"):
        batch = state.batches[path.split("/")[3]]
        if batch["status"] == "in_progress":
            run_batch(state, batch)
        return page(200, batch)
    return error(404, f"no such page: {path}")


async def serve_connection(
    state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    answered: str | None = None
    try:
        while True:
            first, *lines = (
                (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            )
            if answered:
                state.taken.add(answered)
            headers = {
                k.lower(): v.strip()
                for k, _, v in (line.partition(":") for line in lines)
            }
            data = await reader.readexactly(int(headers.get("content-length", 0)))
            method, path, _ = first.split(" ")
            if path == "/v1/chat/completions":
                state.counts["began"] += 1
                try:
                    answered = await chat(
                        state, json.loads(data), headers, reader, writer
                    )
                finally:
                    state.counts["ended"] += 1
            else:
                answered = None
                writer.write(manage(state, method, path, headers, data))
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        pass  # the client has gone, or a fault was due
    finally:
        writer.close()


async def main(options: argparse.Namespace) -> None:
    state = State(options)
    server = await asyncio.start_server(
        lambda r, w: serve_connection(state, r, w),
        "127.0.0.1",
        options.port,
        limit=1 << 20,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.close)
    try:
        await server.serve_forever()
    except asyncio.CancelledError:
        pass


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--faults", type=float, default=0.0, help="share of requests with a fault"
    )
    parser.add_argument("--kinds", default=",".join(FAULTS), help="which faults")
    parser.add_argument(
        "--latency", type=float, default=0.0, help="seconds before each answer"
    )
    parser.add_argument(
        "--hang", type=float, default=30.0, help="seconds that a hanging answer hangs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--answer",
        help=(
            "file.py:function that makes the text of an answer from the body of a request"
        ),
    )
    parser.add_argument(
        "--supports",
        default="json_schema,json_object",
        help="response formats that are honoured",
    )
    parser.add_argument(
        "--unsupported",
        type=int,
        default=400,
        help="status for the others; 0 ignores the format silently",
    )
    parser.add_argument("--strict-params", action="store_true", help="refuse max_tokens")
    parser.add_argument(
        "--refuses", default="", help="parameters that are refused, one after another"
    )
    parser.add_argument("--dialect", default="openai", choices=DIALECTS, help="and how")
    parser.add_argument(
        "--echo-key", action="store_true", help="refuse everything and repeat the key"
    )
    parser.add_argument("--echo-as", default="raw", choices=WRITERS, help="and how")
    parser.add_argument("--echo-status", type=int, default=400)
    # by POST /stats: [status, code, header] for every request
    parser.set_defaults(refuse=None)
    parser.add_argument(
        "--expire",
        type=float,
        default=0.0,
        help="share of a batch's requests that expire",
    )
    parser.add_argument(
        "--lose-batch", action="store_true", help="make a batch, but answer with an error"
    )
    return parser.parse_args(argv)


class Server:
    "A running fault server, as tests see it."

    def __init__(self, port: int) -> None:
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def stats(self, **settings: Any) -> dict[str, Any]:
        "What the server has seen; settings are changed first."
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/stats",
            json.dumps(settings).encode() if settings else None,
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=30
        ) as reply:
            return json.load(reply)


@contextmanager
def running(**options: Any) -> Iterator[Server]:
    "A fault server in a process of its own; options as on the command line."
    flags = []
    for name, value in options.items():
        flags.append(f"--{name.replace('_', '-')}")
        if value is not True:
            flags.append(str(value))
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Server(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def final_answers(journal: Path) -> Counter[str]:
    "How often each prompt was answered for good, by the journal of a client."
    answers: Counter[str] = Counter()
    for line in journal.read_bytes().splitlines():
        try:
            answers.update(r["key"] for r in [json.loads(line)] if r["final"])
        except ValueError:
            pass  # torn by a kill
    return answers


if __name__ == "__main__":
    asyncio.run(main(parse()))
