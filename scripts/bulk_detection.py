"""Measure bulk detection, and kill it at random moments. Linux only.

python scripts/bulk_detection.py plan                            a plan of ten million images: time and memory
python scripts/bulk_detection.py simulate                        its parts done by 1,000 workers, without the network
python scripts/bulk_detection.py throughput MODEL --images DIR   CPU time of an image with each runner, and without
python scripts/bulk_detection.py memory MODEL --images DIR       memory of a worker over 6,000 images, with each runner
python scripts/bulk_detection.py kills MODEL --images DIR        five SIGKILLs with each runner, and the same files
"""

import argparse
import contextlib
import heapq
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpt_zoo.bulk.plan import Plan, PlanReader, Settings, make_plan
from dpt_zoo.bulk.results import Counts, read_counts, write_part
from dpt_zoo.bulk.schedule import Schedule, Tally
from dpt_zoo.bulk.sources import find_entries
from dpt_zoo.bulk.storage import Folder

MIB = 2**20
SETTINGS = Settings("model", "0" * 64, None, ("object",), False, {}, "images", None, 500)
MARK = "DPT_ZOO_MEASURED"
"""A variable in the environment of all processes of a run, by which they are found."""
WORKERS = ("dpt_zoo.bulk.process", "ray::DetectionActor")
"""What the commands of workers contain."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=("plan", "simulate", "throughput", "memory", "kills"))
    parser.add_argument("model", nargs="?")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of images, which are used again and again")
    parser.add_argument("--count", type=int, metavar="N", help="number of images")
    parser.add_argument("--runners", nargs="+", default=["local", "rank", "ray"])
    parser.add_argument("--rounds", type=int, default=3, help="throughput: repetitions, of which the median counts")
    parser.add_argument("--workers", type=int, default=1000, help="simulate: number of workers")
    parser.add_argument("--part-seconds", type=float, default=100, help="simulate: mean time of a part")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(prefix="bulk-") as folder:
        globals()[f"measure_{args.subject}"](args, Path(folder))


def measure_plan(args: argparse.Namespace, folder: Path) -> Plan:
    """Plan the images of a Parquet file of addresses."""
    count = args.count or 10_000_000
    with pq.ParquetWriter(folder / "images.parquet", pa.schema([("uri", pa.string())])) as writer:
        for start in range(0, count, 100_000):
            numbers = range(start, min(start + 100_000, count))
            names = [
                f"s3://bucket/photos/{number % 1000:03d}/{number * 2654435761 % 2**32:08x}.jpg" for number in numbers
            ]
            writer.write_table(pa.table({"uri": names}))
    wall, cpu = time.perf_counter(), time.process_time()
    plan = make_plan(Folder(str(folder / "out")), SETTINGS, find_entries([str(folder / "images.parquet")], None, 500))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = (folder / "out" / "_plan.arrow").stat().st_size / MIB
    print(f"plan: {plan.num_images:,} images, {plan.num_parts:,} parts, {size:.0f} MiB on disk")
    print(f"plan: {wall:.0f} s, CPU time {cpu:.0f} s, peak memory {peak:.0f} MiB")
    return plan


def measure_simulate(args: argparse.Namespace, folder: Path) -> None:
    """Run the plan's parts with simulated workers: what the coordinator does is real, and timed."""
    plan, output = measure_plan(args, folder), Folder(str(folder / "out"))
    choices = random.Random(args.seed)
    schedule, tally = Schedule(range(plan.num_parts)), Tally(plan.num_images, lambda done, total: None)
    now, busy, num_events, num_deaths, cpu = 0.0, list[tuple[float, int, int]](), 0, 0, 0.0

    def start(worker: int) -> None:
        part = schedule.take()
        if part is not None:
            seconds = args.part_seconds * choices.lognormvariate(0, 0.3)
            heapq.heappush(busy, (now + seconds, worker, part))

    for worker in range(args.workers):
        start(worker)
    while busy:
        now, worker, part = heapq.heappop(busy)
        before = time.process_time()
        if choices.random() < 0.01:
            num_deaths += 1
            schedule.fail(part, "died")
        else:
            schedule.finish()
            for done in range(0, 500, 5):  # a report for each half second
                tally.show(part, done)
            tally.finish(part, Counts(500, 5, 5000))
        num_events += 1
        cpu += time.process_time() - before
        start(worker)
    ideal = plan.num_parts * args.part_seconds / args.workers
    print(
        f"simulate: {tally.counts.num_images:,} images, {num_deaths} deaths, {len(schedule.set_aside)} parts set aside"
    )
    print(f"simulate: {now / 3600:.2f} h with {args.workers:,} workers; {ideal / 3600:.2f} h if none ever waited")
    each = cpu / num_events
    print(
        f"simulate: {1e6 * each:.0f} us of the coordinator for a part: {args.part_seconds / each:,.0f} workers at most"
    )
    reader = PlanReader(output)
    seconds = _time(lambda: reader.read(plan.num_parts // 2))
    print(f"simulate: a worker reads the addresses of a part in {1e3 * seconds:.1f} ms")
    write_part(output, plan.part_name(0), SETTINGS, iter(()))
    for index in range(1, plan.num_parts):
        os.link(Path(output.address, plan.part_name(0)), Path(output.address, plan.part_name(index)))
    print(f"simulate: the names of {plan.num_parts:,} finished parts are listed in {_time(output.names):.2f} s")
    each = _time(lambda: [read_counts(output, plan.part_name(index)) for index in range(200)]) / 200
    print(f"simulate: the counts of all finished parts are read in {each * plan.num_parts:.0f} s by one thread")


def measure_throughput(args: argparse.Namespace, folder: Path) -> None:
    """Compare the CPU time of 600 images after 100 images of warm-up, all with one thread."""
    count = args.count or 700
    images = _make_images(args.images, folder / "images", count)
    times: dict[str, list[float]] = {name: [] for name in ("Detector", *args.runners)}
    for number in range(args.rounds):
        for name, seconds in times.items():
            if name == "Detector":
                seconds.append(_time_detector(args.model, images, count))
            else:
                seconds.append(_time_runner(name, args.model, images, folder / f"{name}-{number}", count))
    bare = statistics.median(times["Detector"])
    for name, seconds in times.items():
        listed = ", ".join(f"{1e3 * each:.2f}" for each in seconds)
        middle = statistics.median(seconds)
        print(
            f"throughput: {name}: {1e3 * middle:.2f} ms of CPU time for an image ({listed}); ratio {bare / middle:.3f}"
        )


def measure_memory(args: argparse.Namespace, folder: Path) -> None:
    """Watch the private memory of a worker of each runner."""
    count = args.count or 6000
    images = _make_images(args.images, folder / "images", count + 500)  # the worker still runs after `count`
    for runner in args.runners:
        output = folder / runner
        with _started(runner, args.model, images, output, ["--images-per-part", "500", "--workers", "1"]) as process:
            for part in range(count // 500):
                _wait(lambda part=part, output=output: len(_parts(output)) > part)  # type: ignore[misc]
                worker = max(_find_workers(), key=_private)  # Ray may have started others in advance
                sizes = f"{_private(worker):.1f} MiB, its caller {_private(process.pid):.1f} MiB"
                print(f"memory: {runner}: after {500 * (part + 1):,} images the worker has {sizes}", flush=True)


def measure_kills(args: argparse.Namespace, folder: Path) -> None:
    """Kill processes of a run of 2,000 images, 40 of them bad, and compare its files with those of a run in peace."""
    count = args.count or 2000
    images = _make_images(args.images, folder / "images", count)
    for number in range(0, count, 50):
        path = images / f"{number:06d}.png"
        path.unlink()
        path.write_bytes(b"no image")
    size = ["--images-per-part", "50", "--workers", "2"]
    with _started("local", args.model, images, folder / "expected", size) as process:
        assert process.wait() == 2
    expected = _contents(folder / "expected")
    uris = pq.read_table(folder / "expected", columns=["uri", "error"])
    assert len(set(uris["uri"].to_pylist())) == count and uris["error"].null_count == count - count // 50
    for runner in args.runners:
        choices = random.Random(args.seed)
        with _Victim(runner, args.model, images, folder / runner) as victim:
            for limit in sorted(choices.sample(range(1, len(expected) - 3), 5)):
                victim.wait_for_parts(limit)
                time.sleep(choices.random())
                before = victim.times()
                killed = victim.kill(choices)
                print(f"kills: {runner}: {len(before)} of {len(expected)} parts finished: {killed} killed", flush=True)
            statuses = victim.finish()
            assert before.items() <= victim.times().items(), "a finished part was done again"
            assert _contents(folder / runner) == expected, "other files"
        print(
            f"kills: {runner}: {len(expected)} files with the same bytes, {count:,} images once; exit status {statuses}"
        )


class _Victim:
    """A run whose processes are killed and started again."""

    def __init__(self, runner: str, model: str, images: Path, output: Path) -> None:
        self._runner, self._arguments = runner, (model, images, output)
        self._ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)] if runner == "rank" else [{}]
        self._cluster: Any = None

    def __enter__(self) -> "_Victim":
        options = ["--images-per-part", "50"]
        if self._runner == "ray":
            os.environ[MARK] = self._runner
            from ray.cluster_utils import Cluster

            self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]
            options += ["--address", self._cluster.address]
        elif self._runner == "local":
            options += ["--workers", "2"]
        self._options = options
        self._processes = [self._start(rank) for rank in self._ranks]
        return self

    def __exit__(self, *error: object) -> None:
        if self._cluster:
            self._cluster.shutdown()

    def wait_for_parts(self, number: int) -> None:
        """Wait until this number of parts is finished, or the run has ended."""
        _wait(lambda: len(self.times()) >= number or all(each.poll() is not None for each in self._processes))

    def times(self) -> dict[str, int]:
        """Return when each finished part was written."""
        return {path.name: path.stat().st_mtime_ns for path in _parts(self._arguments[2])}

    def kill(self, choices: random.Random) -> str:
        """Kill a runner, a worker or a node, and start the runner or another node."""
        kinds = ["runner", "worker", "node"] if self._cluster else ["runner", "worker"]
        kind = choices.choice(kinds)
        if kind == "node":
            node = self._nodes.pop(0)
            self._cluster.remove_node(node, allow_graceful=False)
            self._nodes.append(self._cluster.add_node(num_cpus=1))
        elif kind == "worker":
            workers = _find_workers()
            if not workers:
                return "nothing"
            os.kill(choices.choice(workers), signal.SIGKILL)
        else:
            index = choices.randrange(len(self._processes))
            self._processes[index].kill()
            self._processes[index].wait()
            self._processes[index] = self._start(self._ranks[index])
        return f"a {kind}"

    def finish(self) -> list[int]:
        """Wait for the end of the run, and return its exit statuses."""
        return [process.wait() for process in self._processes]

    def _start(self, rank: dict[str, str]) -> "subprocess.Popen[bytes]":
        return _start(self._runner, *self._arguments, self._options, rank)


def _make_images(source: Path, folder: Path, count: int) -> Path:
    """Make a folder of `count` links to images."""
    paths = sorted(path for path in source.iterdir() if path.suffix == ".png" and path.stat().st_size > 100)
    folder.mkdir()
    for number, path in enumerate(islice(cycle(paths), count)):
        (folder / f"{number:06d}.png").symlink_to(path)
    return folder


def _time_detector(model: str, images: Path, count: int) -> float:
    """Return the CPU seconds of an image in the bare loop."""
    from dpt_zoo import Detector

    start = 0.0
    for number, _ in enumerate(Detector(model, num_threads=1).stream(images), 1):
        if number == 100:
            start = time.process_time()
        if number == count:
            return (time.process_time() - start) / (count - 100)
    raise AssertionError("there are too few images")


def _time_runner(runner: str, model: str, images: Path, output: Path, count: int) -> float:
    """Return the CPU seconds of an image in the worker and its caller, without the services of Ray."""
    with _started(runner, model, images, output, ["--images-per-part", "100", "--workers", "1"]):
        _wait(lambda: len(_parts(output)) >= 1)
        start = _cpu_seconds()
        _wait(lambda: len(_parts(output)) >= count // 100 - 1)
        return (_cpu_seconds() - start) / (count - 200)


def _start(
    runner: str, model: str, images: Path, output: Path, options: list[str], variables: dict[str, str]
) -> "subprocess.Popen[bytes]":
    command = ["detect-dataset", str(images), "--output", str(output), "--model", model, "--runner", runner, *options]
    environment = os.environ | {MARK: runner} | variables
    return subprocess.Popen([sys.executable, "-m", "dpt_zoo", *command], env=environment, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _started(
    runner: str, model: str, images: Path, output: Path, options: list[str]
) -> Iterator["subprocess.Popen[bytes]"]:
    variables = {"RANK": "0", "WORLD_SIZE": "1"} if runner == "rank" else {}
    process = _start(runner, model, images, output, options, variables)
    try:
        yield process
        process.wait()
    finally:
        process.kill()
        process.wait()


def _find_processes() -> list[int]:
    """Return the processes of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}=".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _find_workers() -> list[int]:
    return [pid for pid in _find_processes() if any(name in _command(pid) for name in WORKERS)]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def _cpu_seconds() -> float:
    """Return the CPU time so far of the workers and their callers."""
    ticks = 0
    for pid in _find_processes():
        if any(name in _command(pid) for name in (*WORKERS, "-m dpt_zoo detect-dataset")):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # in the user's mode and in the kernel's
    return ticks / os.sysconf("SC_CLK_TCK")


def _private(pid: int) -> float:
    """Return the private memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _parts(output: Path) -> list[Path]:
    return list(output.glob("*.parquet"))


def _contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _parts(output)}


def _wait(is_done: Callable[[], object]) -> None:
    end = time.monotonic() + 600
    while not is_done():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.01)


def _time(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
