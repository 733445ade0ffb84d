"""A step whose shards wait, fail or count themselves as a test asks, by files in a folder. Processes on a cluster
import it by name."""

import os
import time
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from pipeline.system.errors import UserError

DOCUMENTS = 5


class FiveTexts(PipelineStep):
    """Five documents a shard. After two of them shard N raises while there is a file `damaged-N` or `wrong-N`, is
    killed while there is a `deadly-N`, and waits while there is a `hold-N`, having written its process and Ray's name
    of its node to `held-N`."""

    name, type = "five texts", "reader"

    def __init__(self, orders: Path):
        super().__init__()
        self.orders = orders

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        for i in range(DOCUMENTS):
            if i == 2:
                self.obey(rank)
            yield Document(text=f"{rank} {i}", id=f"{rank}/{i}")

    def obey(self, shard: int) -> None:
        def ordered(what: str) -> bool:
            return (self.orders / f"{what}-{shard}").exists()

        if ordered("hold"):
            whole = self.orders / f".held-{shard}"
            whole.write_text(f"{os.getpid()} {node()}")
            whole.rename(self.orders / f"held-{shard}")
        while ordered("hold"):
            time.sleep(0.05)
        if ordered("damaged"):
            raise ValueError(f"damaged input in the middle of shard {shard}")
        if ordered("wrong"):
            raise UserError(f"the file of shard {shard} is wrong")
        if ordered("deadly"):
            os.kill(os.getpid(), 9)


def node() -> str:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""


def run_held(orders: str, address: str) -> None:
    """A process of a user whose two shards are held: it runs until it is stopped."""
    from types import SimpleNamespace
    from typing import Any

    from pipeline.corpus.execute import Executor
    from pipeline.system import signals

    signals.install()
    folder: Any = SimpleNamespace(path=Path(orders), logs=Path(orders) / "logs")
    options = {"address": address, "mem_per_cpu_gb": 0.1}
    Executor(tasks=2, kind="ray", options=options).run(folder, [FiveTexts(Path(orders))], description="held")
