"""How fast options are scored, beside a plain forward pass of the same model over the same batches.

    python tests/bench_score.py MODEL [--data DIR --tasks blend_mc,blend_mc_text --questions 100]

The plain pass reads each option with its question; scoring reads what options have in common
once, and its rate counts the same tokens. Both do a batch in turn, one directly after the other, so
that whatever else the machine does is shared; seconds of the processors are told, too. The target:
at least 90 % of the tokens a second.
"""

import argparse
import random
import time
from itertools import zip_longest
from pathlib import Path

import torch

from cmining.train.score import (
    BATCH_TOKENS,
    batch_inputs,
    cut_batches,
    longest_input,
    make_inputs,
    pad_tokens,
    score_inputs,
)
from cmining.train.tasks import read_task, task_questions
from cmining.train.tune import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default="../shared/data/benchmarks")
    parser.add_argument("--tasks", default="blend_mc,blend_mc_text")
    parser.add_argument("--questions", type=int, default=100)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    print(f"{model.device.type}, {model.dtype}, {torch.get_num_threads()} threads")
    for name in options.tasks.split(","):
        task = read_task(name)
        questions, _ = task_questions(task, options.data)
        random.Random(0).shuffle(questions)
        pairs = [
            (task.ask(q), [task.delimiter + choice for choice in task.choices(q)])
            for q in questions[: options.questions]
        ]
        longest = longest_input(model)
        with_stems = batch_inputs(make_inputs(tokenizer, pairs, longest)[0], BATCH_TOKENS)
        whole, _ = make_inputs(tokenizer, pairs, longest, share=False)
        rows = [tail for one in whole for tail in one.tails]
        rows.sort(key=len, reverse=True)
        spans = cut_batches([len(row) for row in rows], BATCH_TOKENS)
        score_inputs(model, with_stems[-1])  # warm
        plain = [0.0, 0.0]  # seconds on the clock, and of the processors
        scored = [0.0, 0.0]

        def add_time(total: list[float], start: tuple[float, float]) -> None:
            total[0] += time.perf_counter() - start[0]
            total[1] += time.process_time() - start[1]

        for span, batch in zip_longest(spans, with_stems):
            start = time.perf_counter(), time.process_time()
            if span is not None:
                with torch.inference_mode():
                    tokens, _ = pad_tokens(rows[span.start : span.stop], model.device)
                    model(input_ids=tokens, use_cache=False).logits[0, -1, 0].item()
                add_time(plain, start)
            start = time.perf_counter(), time.process_time()
            if batch is not None:
                score_inputs(model, batch)
                add_time(scored, start)
        n_tokens = sum(map(len, rows))
        batches = with_stems
        print(
            f"{name}: {len(batches)} batches, {n_tokens:,} tokens; plain forward pass"
            f" {n_tokens / plain[0]:,.0f} tokens/s, scoring {n_tokens / scored[0]:,.0f}"
            f" ({plain[0] / scored[0]:.0%}; of processor time {plain[1] / scored[1]:.0%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
