"""The engine changes no byte of a run, and what goes wrong is reported and loses nothing."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from cmining.core import engine
from cmining.core.basics import RunError
from cmining.core.engine import (
    RunLog,
    Task,
    as_path,
    hold_folder,
    run_step,
    start_engine,
)
from cmining.core.runs import Params, read_record, read_texts
from cmining.mine import pipeline
from cmining.mine.pipeline import mine_corpus

SAMPLE = Path(__file__).parent.parent / "data" / "sample"


def points_of(run):
    return (run / "culture_points.parquet").read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    mine_corpus(SAMPLE, run, jobs=1)
    return run


@pytest.fixture
def ray_cluster():
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'cmining[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def dask_cluster():
    distributed = pytest.importorskip(
        "distributed", reason="Dask is an extra: pip install 'cmining[dask]'"
    )
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def kill_one_worker(run: Path, names: tuple[str, ...], killed: list[int]) -> None:
    "Once there are vectors, kill a process that computes for the run."
    while not list((run / "work").glob("vectors/*")):
        time.sleep(0.002)
    for process in psutil.Process().children(recursive=True):
        command = " ".join(process.cmdline())
        if any(name in command for name in names):
            process.send_signal(signal.SIGKILL)
            killed.append(process.pid)
            return


WORKERS = {"ray": ("ray::PoolActor",), "dask": ("spawn_main",)}


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_same_bytes_on_a_cluster_though_a_worker_is_killed(
    backend, reference, tmp_path, request
):
    address = request.getfixturevalue(f"{backend}_cluster")
    if backend == "ray":  # starts processes for every step, in ten seconds: three will do
        anew = shutil.ignore_patterns("vectors", "isolation", "series")
        shutil.copytree(reference / "work", tmp_path / "work", ignore=anew)
    killed: list[int] = []
    thread = threading.Thread(
        target=kill_one_worker, args=(tmp_path, WORKERS[backend], killed)
    )
    thread.start()
    mine_corpus(SAMPLE, tmp_path, backend=backend, address=address, jobs=2)
    thread.join()
    assert killed
    assert points_of(tmp_path) == points_of(reference)


def end_its_process(target: Path) -> None:
    os._exit(1)


def test_workers_that_die_again_and_again_end_the_run(tmp_path):
    tasks = [Task(tmp_path / name, end_its_process, ()) for name in "ab"]
    with start_engine(jobs=2) as jobs:
        with pytest.raises(RunError, match="killed during 'doomed'.* fewer jobs"):
            run_step("doomed", tasks, jobs, RunLog(quiet=True))


def test_a_run_on_another_file_system(reference):
    import fsspec

    corpus = as_path("memory://corpus")
    run = as_path("memory://run")
    for file in SAMPLE.glob("*.jsonl"):
        (corpus / file.name).write_bytes(file.read_bytes())
    points = mine_corpus("memory://corpus", "memory://run", jobs=1)
    assert points_of(run) == points_of(reference)
    assert len(read_texts("memory://run", points)) == len(points)
    mine_corpus("memory://corpus", "memory://run", jobs=1)
    resumed = {
        s["step"]: s["resumed"] == s["tasks"]
        for s in read_record("memory://run")["steps"]
    }
    assert resumed.pop("discover") is False
    assert all(resumed.values())
    fsspec.filesystem("memory").store.clear()


def test_a_full_disk_is_reported_and_the_run_goes_on_when_there_is_space(
    reference, tmp_path, monkeypatch
):
    save = pipeline.save_array

    def full(path, array):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pipeline, "save_array", full)
    with pytest.raises(RunError, match="the disk is full .* goes on where it stopped"):
        mine_corpus(SAMPLE, tmp_path, jobs=1)
    assert not list((tmp_path / "work").glob("*/.*")), "something unfinished was left"
    monkeypatch.setattr(pipeline, "save_array", save)
    mine_corpus(SAMPLE, tmp_path, jobs=1)
    assert points_of(tmp_path) == points_of(reference)
    assert read_record(tmp_path)["steps"][2]["resumed"] > 0


Usage = namedtuple("Usage", "total used free")


def test_too_little_disk_or_memory_is_refused_before_the_run(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(pipeline.shutil, "disk_usage", lambda _: Usage(1, 1, 0))
        with pytest.raises(RunError, match="GB of disk"):
            mine_corpus(SAMPLE, tmp_path / "a", jobs=1)
    with monkeypatch.context() as m:
        m.setattr(
            pipeline.psutil,
            "virtual_memory",
            lambda: namedtuple("Memory", "available")(1),
        )
        with pytest.raises(RunError, match="GB of memory"):
            mine_corpus(SAMPLE, tmp_path / "b", jobs=1)
    assert not list((tmp_path / "a" / "work").glob("*/*"))


def test_a_plan_that_is_near_the_truth(reference):
    record = read_record(reference)
    n = sum(sum(c.values()) for c in record["counts"].values())
    assert 0.7 < sum(record["plan"]["entries"].values()) / n < 1.4
    on_disk = sum(f.stat().st_size for f in reference.rglob("*") if f.is_file())
    assert on_disk < record["plan"]["disk_bytes"] < 4 * on_disk


def test_runs_that_share_their_work(reference, tmp_path):
    mine_corpus(SAMPLE, tmp_path / "a", jobs=1)
    mine_corpus(SAMPLE, tmp_path / "b", Params.of(alpha=0.1), jobs=1, work=tmp_path / "a")
    record = read_record(tmp_path / "b")
    assert all(
        s["resumed"] == s["tasks"]
        for s in record["steps"]
        if s["step"] not in ("series", "discover")
    )
    assert not list((tmp_path / "b" / "work").glob("*/*"))
    points = pipeline.read_run(tmp_path / "b", "culture_points")
    assert len(read_texts(tmp_path / "b", points)) > 0


def hold(folder):
    with hold_folder(folder):
        pass


def hold_until_killed(folder: Path) -> None:
    with hold_folder(folder):
        print("held", flush=True)
        time.sleep(60)


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    held = f"from test_engine import *; hold_until_killed(Path({str(tmp_path)!r}))"
    owner = subprocess.Popen(
        [sys.executable, "-c", held], stdout=subprocess.PIPE, cwd=Path(__file__).parent
    )
    assert owner.stdout.readline() == b"held\n"
    with pytest.raises(
        RunError, match=f"in use by process {owner.pid} on .*: wait for it"
    ):
        hold(tmp_path)
    owner.kill()
    owner.wait()
    assert (tmp_path / ".lock").exists()  # what the killed one left
    hold(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 1}', "\0" * 9])
def test_a_lock_file_that_says_nothing_bars_nobody(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    hold(tmp_path)


def test_a_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), hold_folder(tmp_path):
        raise KeyError
    hold(tmp_path)


def test_locks_where_the_file_system_has_none(tmp_path, monkeypatch, caplog):
    "Network file systems and object stores: only this host's processes are known."
    monkeypatch.setattr(engine, "lock_file", lambda file: None)
    remote = as_path("memory://locks")
    remote.mkdir()
    for folder in (tmp_path, remote):
        with hold_folder(folder):
            with pytest.raises(RunError, match=f"in use by process {os.getpid()} on"):
                hold(folder)
        me = engine.this_process()
        (folder / ".lock").write_text(json.dumps(me | {"began": me["began"] - 3600}))
        hold(folder)
        assert not caplog.records
        (folder / ".lock").write_text(json.dumps(me | {"host": "lost-machine"}))
        hold(folder)
        assert "lost-machine" in caplog.text
        caplog.clear()


MISTAKES = {
    "an unknown backend": (dict(backend="spark"), "loky, ray, dask"),
    "an address without a cluster": (dict(address="tcp://127.0.0.1:1"), "backend 'ray'"),
    "no jobs": (dict(jobs=0), "at least 1"),
}


@pytest.mark.parametrize("options, named", MISTAKES.values(), ids=MISTAKES)
def test_mistakes(tmp_path, options, named):
    with pytest.raises(RunError, match=named):
        mine_corpus(SAMPLE, tmp_path, **options)
