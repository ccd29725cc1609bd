"""Kill a run at random moments, go on each time, and compare what comes out with an undisturbed run; another run until there were enough kills.

    python tests/kill_run.py CORPUS [--kills 20]

Prints how often it was killed in which step, how many tasks were unfinished at a kill (they are repeated), and whether the
bytes are the same. For large corpora; the test suite kills runs of the bundled sample.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "cmining")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    rng = random.Random(0)
    steps = Counter()
    unfinished = []
    with tempfile.TemporaryDirectory() as d:
        undisturbed = Path(d) / "undisturbed"
        killed = Path(d) / "killed"
        begin = time.perf_counter()
        process = subprocess.Popen(
            [COMMAND, "mine", options.corpus, "--out", undisturbed, "--jobs", "2"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not any((undisturbed / "work").glob("*/*")):
            time.sleep(0.05)
        start = time.perf_counter() - begin  # until the first task
        if process.wait():
            sys.exit("the undisturbed run failed")
        seconds = time.perf_counter() - begin - start
        finished = 0
        same = True
        # a run that ends before the last kill is followed by another
        while len(unfinished) < options.kills or killed.exists():
            process = subprocess.Popen(
                [COMMAND, "mine", options.corpus, "--out", killed, "--jobs", "2"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            if len(unfinished) < options.kills:
                time.sleep(start + rng.uniform(0, 2 * seconds / options.kills))
                os.killpg(process.pid, signal.SIGKILL)
            if code := process.wait():
                if code != -signal.SIGKILL:
                    sys.exit(f"a resumed run failed with status {code}")
                left = [f for f in (killed / "work").glob("*/.*") if f.name != ".cmining"]
                unfinished.append(len(left))
                steps.update({f.parent.name for f in left} or {"between steps"})
            else:
                finished += 1
                same &= all(
                    (undisturbed / name).read_bytes() == (killed / name).read_bytes()
                    for name in (
                        "entries.parquet",
                        "groups.parquet",
                        "culture_points.parquet",
                    )
                )
                shutil.rmtree(killed)
        print(
            f"{len(unfinished)} kills of {finished} runs"
            f" ({', '.join(f'{n} in {step}' for step, n in steps.items())}); at most"
            f" {max(unfinished)} tasks unfinished at a kill; the same bytes: {same}"
        )
        sys.exit(not same)


if __name__ == "__main__":
    main()
