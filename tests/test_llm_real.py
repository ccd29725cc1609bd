"""Asking somebody else's server: llama.cpp's, from the xllamacpp wheel.

Its model has random weights, 0.4 MB of them, and is written here.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from cmining.models import llm
from cmining.models.llm import ask
from cmining.models.prompts import Endpoint, Prompt

SHORT = {"type": "string", "pattern": "^[a-z ]{3,20}$"}
FREE = {"type": "string"}


def item(text: dict) -> dict:
    return {
        "type": "object",
        "properties": {
            "question": text,
            "answer": {"type": "string", "enum": ["A", "B", "C", "D"]},
        },
        "required": ["question", "answer"],
        "additionalProperties": False,
    }


def write_model(path: Path) -> None:
    """A model of the Qwen2 type with random weights, whose tokens are the 256 bytes.

    Most probable are eight bytes that UTF-8 never has.
    """
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    d = 64
    ff = 128
    layers = 2
    heads = 4
    kv = 2
    # bytes that byte-level BPE shows as themselves; the others from 256 on
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    tokens = [chr(b) if b in plain else chr(next(others)) for b in range(256)] + [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    w = gguf.GGUFWriter(path, "qwen2")
    w.add_block_count(layers)
    w.add_context_length(2048)
    w.add_embedding_length(d)
    w.add_feed_forward_length(ff)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(10000.0)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_merges(["a b"])
    w.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 3)
    w.add_eos_token_id(258)
    w.add_bos_token_id(256)
    w.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%"
        " endfor %}<|im_start|>assistant\n"
    )

    def tensor(name: str, *shape: int) -> None:
        w.add_tensor(name, rng.normal(0, 0.1, shape).astype(np.float32))

    embedding, output = rng.normal(0, 0.1, (2, len(tokens), d)).astype(np.float32)
    # a constant, which the norm before the output leaves at about 8 ...
    embedding[:, 0] = 8
    output[:, 0] = 0
    output[0xF8:0x100, 0] = 1  # ... so that this is added to these tokens' logits
    w.add_tensor("token_embd.weight", embedding)
    w.add_tensor("output.weight", output)
    w.add_tensor("output_norm.weight", np.ones(d, np.float32))
    for i in range(layers):
        for name, rows in (
            ("attn_q", d),
            ("attn_k", d // heads * kv),
            ("attn_v", d // heads * kv),
        ):
            tensor(f"blk.{i}.{name}.weight", rows, d)
            w.add_tensor(f"blk.{i}.{name}.bias", np.zeros(rows, np.float32))
        tensor(f"blk.{i}.attn_output.weight", d, d)
        for name in ("ffn_gate", "ffn_up"):
            tensor(f"blk.{i}.{name}.weight", ff, d)
        tensor(f"blk.{i}.ffn_down.weight", d, ff)
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{name}.weight", np.ones(d, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def serve(model: str) -> None:
    "Serve a model until the standard input ends."
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 4096
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    print(f"\nADDRESS {server.listening_address}", flush=True)
    sys.stdin.read()


@pytest.fixture(scope="module")
def base_url(tmp_path_factory):
    pytest.importorskip(
        "xllamacpp",
        reason="llama.cpp's server is not installed: pip install xllamacpp gguf",
    )
    model = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(model)
    with subprocess.Popen(
        [sys.executable, __file__, str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        address = next(
            (line.split()[1] for line in process.stdout if line.startswith("ADDRESS")),
            None,
        )
        assert address, "the server did not start"
        for _ in range(200):
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                    f"{address}/health", timeout=5
                )
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield f"{address}/v1"
        process.kill()


def prompts(n: int, text: dict) -> list[Prompt]:
    return [
        Prompt(
            f"k{i}",
            ({"role": "user", "content": f"Write question {i} about 江湖."},),
            item(text),
            max_tokens=400,
            seed=i,
        )
        for i in range(n)
    ]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr("cmining.models.budget.FIRST_WAIT", 0.02)
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)


def test_a_strict_schema_with_patterns(base_url, tmp_path):
    endpoint = Endpoint("tiny", base_url, concurrency=2)
    asked = prompts(10, SHORT)
    replies = list(ask(asked, endpoint, tmp_path / "j.jsonl"))
    assert {r.mode for r in replies} == {"json_schema"}
    assert all(r.prompt_tokens and r.completion_tokens for r in replies)
    for reply in replies:
        value = json.loads(reply.text)
        assert set(value) == {"question", "answer"}
        assert value["answer"] in "ABCD"
        assert 3 <= len(value["question"]) <= 20
    # no server is needed for what is in the journal
    nowhere = Endpoint("tiny", "http://127.0.0.1:9/v1")
    assert list(ask(asked, nowhere, tmp_path / "j.jsonl")) == replies


def test_a_schema_that_the_server_fails_on(base_url, tmp_path, monkeypatch):
    """Free strings: random bytes are no UTF-8, and this server answers with HTTP 500.

    Plain text is left, and every prompt has a reply.
    """
    statuses = []
    status_failure = llm.status_failure

    def note_status(e):
        statuses.append(e.status_code)
        return status_failure(e)

    monkeypatch.setattr(llm, "status_failure", note_status)
    endpoint = Endpoint("tiny", base_url, concurrency=2)
    replies = list(ask(prompts(4, FREE), endpoint, tmp_path / "j.jsonl"))
    assert 500 in statuses
    assert [r.key for r in replies] == ["k0", "k1", "k2", "k3"]
    assert "json_schema" not in {r.mode for r in replies}
    assert all((r.text is None) != (r.error is None) for r in replies)


if __name__ == "__main__":
    serve(sys.argv[1])
