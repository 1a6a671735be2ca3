"""Two processes, started by the frameworks' own launchers, count what one process counts."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digit_files import STEEP, write_folder
from typer.testing import CliRunner

import tomecore
from tomecore import cli
from tomecore.errors import ArgumentValueError, TomeError
from tomecore.evaluation import distributed, evaluate
from tomecore.evaluation.distributed import ALONE, Processes, join
from tomecore.frameworks import predict
from tomecore.models.torch import VisionTransformer

COUNT = 21
MODULE = Path(tomecore.__file__).parent / "cli" / "__main__.py"
LAUNCHERS = {
    "torch": [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tomecore.cli",
    ],
    "paddle": ["paddle.distributed.launch", "--nproc_per_node", "2", str(MODULE)],
}
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def launch(framework: str, folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(path for path in (str(MODULE.parents[2]), *sys.path) if path)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")},
        **{"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    }
    return subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[framework], *arguments],
        **{"env": environment, "cwd": folder, "text": True, "timeout": 180},
        **{"capture_output": True, "check": False},
    )


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_two_processes_are_one(framework: str, tmp_path: Path) -> None:
    """An odd number of images, two of them broken, and a last batch that is not full."""
    write_folder(tmp_path / "data", COUNT)
    for name in ("2/broken.png", "6/broken.png"):
        (tmp_path / "data" / name).write_bytes(b"broken")
    common = ["evaluate", str(tmp_path / "data"), "--model", f"digits:{framework}", "--batch", "4"]
    common += ["--schedule", "8", str(STEEP), "--device", "cpu"]
    alone = CliRunner().invoke(cli.app, [*common, "--json", str(tmp_path / "one.json")])
    assert alone.exit_code == 1, alone.output
    found = launch(framework, tmp_path, [*common, "--json", "two.json", "--resume", "record"])
    assert found.returncode != 0  # two images are broken
    assert (tmp_path / "two.json").exists(), found.stdout + found.stderr
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    # Batches of full size; the shares of the processes end with smaller ones.
    assert min(one.pop("timed"), two.pop("timed")) >= 3
    for row in (*one["rows"], *two["rows"]):
        assert row.pop("images_per_second") > 0
        assert row.pop("speedup") > 0
    assert one == two
    assert two["images"] == COUNT
    assert 0 < two["rows"][2]["same"] < COUNT
    assert 0 < two["rows"][2]["right"] < two["rows"][2]["right5"] < COUNT
    assert [len(row["path"]) for row in two["unreadable"]] == [len(str(tmp_path / "data")) + 13] * 2
    if framework == "torch":
        assert (found.stdout + found.stderr).count("agrees") == 1  # one table
    else:
        logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in (0, 1)]
        assert [log.count("agrees") for log in logs] == [1, 0]
    records = [(tmp_path / f"record.{rank}of2").read_text().splitlines() for rank in (0, 1)]
    images = [[json.loads(line)["images"] for line in lines[1:]] for lines in records]
    assert sum(map(sum, images)) == COUNT
    assert abs(sum(images[0]) - sum(images[1])) <= 3
    refused = CliRunner().invoke(cli.app, [*common, "--resume", str(tmp_path / "record")])
    with pytest.raises(
        ArgumentValueError, match=r"record\.0of2 belongs to a run of 2 processes, but this"
    ):
        raise refused.exception  # type: ignore[misc]


class Meeting:
    """The messages between threads that stand for processes."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier = world, threading.Barrier(world, timeout=60)
        self.given: list[Any] = [None] * world
        self.found: list[Any] = [None] * world

    def process(self, rank: int) -> Processes:
        def gather(value: Any) -> list[Any]:
            self.given[rank] = value
            self.barrier.wait()
            result = list(self.given)
            self.barrier.wait()
            return result

        return Processes(rank, self.world, gather)

    def run(self, job: Any) -> list[Any]:
        def one(rank: int) -> None:
            try:
                self.found[rank] = job(self.process(rank))
            except TomeError as error:
                self.found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.found


def test_shares_are_everything_once() -> None:
    for world in (1, 2, 3, 5):
        shares = [Processes(rank, world).share(7) for rank in range(world)]
        assert sorted(index for share in shares for index in share) == list(range(7))


def test_everybody_hears_everybody() -> None:
    given = [{"a": [1, 2.5]}, "ü" * 300, None]
    found = Meeting(3).run(lambda process: process.gather(given[process.rank]))
    assert found == [given] * 3
    assert ALONE.gather(given) == [given]


def model() -> Any:
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=3
    )


IMAGES = np.zeros((2, 3, 16, 16), dtype=np.float32)


def test_more_processes_than_images() -> None:
    first = model()
    copies = [copy.deepcopy(first) for _ in range(3)]
    labels = predict(first, IMAGES).argmax(-1)
    for result in Meeting(3).run(
        lambda process: evaluate(copies[process.rank], IMAGES, labels, [0], processes=process)
    ):
        assert (result.images, result.processes) == (2, 3)
        assert [row.right for row in result.rows] == [2]


def test_other_weights_are_noticed() -> None:
    models = [model(), model()]
    found = Meeting(2).run(
        lambda process: evaluate(models[process.rank], IMAGES, None, [2], processes=process)
    )
    assert [type(error) for error in found] == [TomeError] * 2
    assert "weights is" in str(found[0])
    assert "are random in each process" in str(found[0])


@pytest.mark.parametrize(
    ("variables", "framework", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "x"}, "torch", "WORLD_SIZE='2' and RANK='x'; both must be"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "torch", "the second must be from 0 to below the first"),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "paddle",
            "torchrun has started 2 processes of a paddle",
        ),
        (
            {"PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ID": "0"},
            "torch",
            "paddle.distributed.launch has started 2 processes of a torch model; .* torchrun",
        ),
    ],
)
def test_launchers(
    variables: dict[str, str], framework: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TomeError, match=message), join(framework):
        pass


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with join("torch") as found:
        assert found is ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    with join("torch") as found:
        assert found.first
        assert found.share(3) == range(3)
    assert distributed.local_rank("torch") == 3
    assert distributed.local_rank("paddle") == 0
