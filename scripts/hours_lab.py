"""A folder to run `hornbook pretrain` in, many times, as processes of their own: what bench_hours.py measures on.

A 0.4M model on a slice of configs/tiny.yaml's corpus, one thread. In: words after the config. Out: manifests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEAK_LEARNING_RATE = 4.0e-3
CONFIG = f"""
name: hours
data:
  sources:
    python_library: {{type: python_library, distributions: [mpmath, networkx, omegaconf, pydantic]}}
  filters: {{length: {{}}, long_lines: {{}}, letters: {{}}}}
  validation: {{max_bytes: 20_000}}
  tasks: 4
model: {{vocab_size: 1024, hidden_size: 96, intermediate_size: 384, num_hidden_layers: 3, num_attention_heads: 4,
        max_position_embeddings: 128}}
train: {{sequence_length: 128, global_batch_tokens: 1024, learning_rate: {PEAK_LEARNING_RATE}, warmup_steps: 20,
        device: cpu, checkpoint_every_seconds: 5}}
tracking: {{to: none}}
sample: {{prompts: []}}
"""


class Lab:
    """One folder with the data made; runs stages as processes of their own, one thread each."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.config = folder, folder / "hours.yaml"
        self.environment: dict[str, str] = {}
        self.config.write_text(CONFIG, encoding="utf-8")

    def beside(self, name: str) -> "Lab":
        """A second folder for the same experiment: its data and init are this one's, its pretrainings its own."""
        other = Lab(self.folder / name)
        for made in (self.folder / "artifacts").iterdir():
            link = other.folder / "artifacts" / made.name
            if made.name != "pretrain" and not link.exists():
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(made.resolve())
        return other

    def start(self, stage: str, *words: str) -> subprocess.Popen:
        environment = {**os.environ, "HORNBOOK_ROOT": str(self.folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= self.environment
        command = [sys.executable, "-P", "-m", "pipeline", stage, str(self.config), *words]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def pretrain(self, name: str, *words: str) -> dict[str, Any]:
        """The manifest of a run; `name` is the experiment's folder under runs/."""
        self._finish("pretrain", *words)
        return self.manifest(name)

    def run_here(self, *words: str, branch: str | None = None) -> dict[str, Any]:
        """The same in this process, which saves its start; for limits in tokens, as the process's age is none of one
        run's. `branch`: as `--branch`."""
        from pipeline import config as configs
        from pipeline import stages
        from pipeline.run_stage import run_stage
        from pipeline.storage.steps import read_manifest
        from pipeline.training.branching import branch as branch_of

        os.environ["HORNBOOK_ROOT"] = str(self.folder)
        config = configs.load(self.config, words)
        if branch:
            config = branch_of(config, branch, stages.pretrain_step(config).fingerprint)
        run_stage("pretrain", config, str(self.config))
        return read_manifest(stages.pretrain_step(config).path)

    def prepare_here(self, *words: str) -> None:
        """Data and init in this process."""
        from pipeline import config as configs
        from pipeline.run_stage import run_stage

        os.environ["HORNBOOK_ROOT"] = str(self.folder)
        config = configs.load(self.config, words)
        for stage in ("data", "init"):
            run_stage(stage, config, str(self.config))

    def prepare(self, *words: str) -> None:
        for stage in ("data", "init"):
            self._finish(stage, *words)

    def manifest(self, name: str) -> dict[str, Any]:
        return json.loads((self.run_folder(name) / "manifest.json").read_text(encoding="utf-8"))

    def metrics(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_folder(name) / "metrics.jsonl").read_text().splitlines()]

    def decisions(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_folder(name) / "decisions.jsonl").read_text().splitlines()]

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs" / name / "pretrain"

    def _finish(self, stage: str, *words: str) -> None:
        process = self.start(stage, *words)
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"hornbook {stage} {' '.join(words)} ended with {process.returncode}: {errors[-2000:]}")


def hours(seconds: float) -> str:
    return f"budget.max_gpu_hours={seconds / 3600:.8f}"
