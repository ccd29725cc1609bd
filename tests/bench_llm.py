"""Requests a second and memory of `ask`: python tests/bench_llm.py [N].

Against a local server that answers at once, in a process of its own. Beside it the bare
`openai` client on the same server, which writes nothing down.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import fault_server

from cmining.core.engine import peak_memory
from cmining.models.llm import ask, make_client
from cmining.models.prompts import Endpoint, Prompt

SCHEMA = {
    "type": "object",
    "properties": {
        "question": {"type": "string"},
        "answer": {"type": "string", "enum": ["A", "B"]},
    },
    "required": ["question", "answer"],
}
LEAD = (
    "江湖 (jiānghú, rivers and lakes) is the world of wandering heroes in Chinese tales. "
    * 10
)


def prompts(n: int):
    for i in range(n):
        yield Prompt(
            f"item {i}",
            (
                {"role": "system", "content": "You write exam questions."},
                {"role": "user", "content": f"{i}: {LEAD}"},
            ),
            SCHEMA,
        )


def bare(endpoint: Endpoint, n: int) -> float:
    async def work() -> float:
        waiting = prompts(n)
        async with make_client(endpoint, "AsyncOpenAI") as client:

            async def worker() -> None:
                for p in waiting:
                    await client.chat.completions.create(
                        model="m",
                        messages=list(p.messages),
                        max_tokens=p.max_tokens,
                        temperature=p.temperature,
                    )

            start = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(endpoint.concurrency)))
            return n / (time.perf_counter() - start)

    return asyncio.run(work())


def main(n: int) -> None:
    with (
        fault_server.running(answer=f"{__file__}:at_once") as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        endpoint = Endpoint("m", server.base_url, concurrency=32)
        journal = Path(folder) / "j.jsonl"
        base = peak_memory()
        print(f"before: {base / 2**20:,.0f} MiB", flush=True)
        for what in ("asked", "from the journal"):
            start = time.perf_counter()
            done = 0
            slowest = float("inf")
            last = time.perf_counter()
            for reply in ask(prompts(n), endpoint, journal):
                assert reply.text, reply.error
                done += 1
                if done % 1000 == 0:
                    slowest = min(slowest, 1000 / (time.perf_counter() - last))
                    last = time.perf_counter()
            print(
                f"{n:,} {what}: {n / (time.perf_counter() - start):,.0f}/s, slowest"
                f" thousand {slowest:,.0f}/s, at most {peak_memory() / 2**20:,.0f} MiB",
                flush=True,
            )
        print(f"bare client: {bare(endpoint, min(n, 3000)):,.0f}/s")


def at_once(body: dict) -> str:
    return (
        '{"question": "What are rivers and lakes in tales of wandering heroes?",'
        ' "answer": "A"}'
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
