"""Part `pretrain` of the check: `hornbook pretrain` under a cap, killed after a checkpoint, resumed and run to its end.

In: a folder. Out: what its ledger, decisions, metrics and manifest say, and on which device each validation ran. Data
and init are made here in a second by the stages' own writers; the rest is the command, in processes of its own. The
data stage's libraries are not needed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VALIDATIONS, MORE_ROWS = "validations.jsonl", 3
CAP_SECONDS = {"cpu": 45.0, "cuda": 75.0}  # two starts of torch, and some seconds to train
LIMIT_SECONDS = 120.0  # of either process
TOLERANCE = 0.02  # of a loss, relative; between two GPU runs of the same steps (unmeasured)
CONFIG = """
name: check
seed: 3
model: {{vocab_size: 512, hidden_size: {width}, intermediate_size: {feed_forward}, num_hidden_layers: 4,
        num_attention_heads: 4, max_position_embeddings: {length}}}
train: {{sequence_length: {length}, global_batch_tokens: {batch}, warmup_steps: 5, log_every_steps: 1, device: {device},
        learning_rate: 1.0e-3, validate_every_share: 0.3, checkpoint_every_seconds: 3, compile: "false"}}
tracking: {{to: none}}
sample: {{prompts: ["def "], max_new_tokens: 8}}
budget: {{max_gpu_hours: {hours}}}
"""


def run(folder: Path, device_type: str) -> dict[str, Any]:
    """Both processes. `ok`: inside the cap, annealed, validated on its device, and the steps that both took agree: to
    the last bit on a CPU, within `TOLERANCE` on a GPU, whose attention adds in no fixed order."""
    folder.mkdir(parents=True, exist_ok=True)
    cap_seconds = CAP_SECONDS[device_type]
    tiny = {"width": 64, "feed_forward": 128, "length": 64, "batch": 512}
    sizes = tiny if device_type == "cpu" else {"width": 256, "feed_forward": 1024, "length": 2048, "batch": 8192}
    config = folder / "check.yaml"
    config.write_text(CONFIG.format(**sizes, device=device_type, hours=cap_seconds / 3600), encoding="utf-8")
    environment = {**os.environ, "HORNBOOK_ROOT": str(folder)}
    command = [sys.executable, "-m", "tests.gpu_check.killed_run", str(config)]
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr)
    before = _kill_after_checkpoint(first, folder)
    second = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, timeout=LIMIT_SECONDS, check=False)
    if second.returncode:
        raise RuntimeError(f"the resumed run ended with exit code {second.returncode}")
    manifest = json.loads(next(folder.glob("artifacts/pretrain/*/manifest.json")).read_text(encoding="utf-8"))
    after = _losses(folder)
    twice = {step: (before[step], after[step]) for step in before if step in after}
    apart = max((abs(a - b) / abs(b) for a, b in twice.values()), default=float("inf"))
    validations = [json.loads(line) for line in (folder / VALIDATIONS).read_text(encoding="utf-8").splitlines()]
    spent = manifest["gpu_hours"] * 3600
    good = spent <= cap_seconds and manifest["annealed"] and apart <= (0 if device_type == "cpu" else TOLERANCE)
    return {
        "ok": bool(good and all(each["device"] == device_type for each in validations)),
        "cap_seconds": cap_seconds,
        "spent_seconds": round(spent, 2),
        "annealed": manifest["annealed"],
        "attempts": manifest["lives"],
        "steps": manifest["steps"],
        "sequence_length": sizes["length"],
        "steps_before_the_kill": max(before),
        "losses_apart": apart,
        "last_validation": validations[-1],
        "validated_share": manifest["validated_share"],
    }


def _kill_after_checkpoint(child: "subprocess.Popen[bytes]", folder: Path) -> dict[int, float]:
    """Kills it some steps after a checkpoint, which its second process computes again; the losses until then."""
    ends, saved_at = time.monotonic() + LIMIT_SECONDS, None
    while saved_at is None or max(_losses(folder), default=0) < saved_at + MORE_ROWS:
        if time.monotonic() > ends or child.poll() is not None:
            child.kill()
            raise RuntimeError("the first process wrote no checkpoint before its end")
        if saved_at is None and list(folder.glob("artifacts/pretrain/*/checkpoints/step-*")):
            saved_at = max(_losses(folder), default=0)
        time.sleep(0.05)
    child.kill()
    if child.wait(timeout=60) != -signal.SIGKILL:
        raise RuntimeError(f"the first process ended with {child.returncode} before it could be killed")
    return _losses(folder)


def _losses(folder: Path) -> dict[int, float]:
    """By step, of the rows that are whole."""
    found = {}
    for path in folder.glob("artifacts/pretrain/*/metrics.jsonl"):
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            row = json.loads(line)
            if "train/loss" in row:
                found[row["step"]] = row["train/loss"]
    return found


# ---- the child


def main(config_path: Path) -> int:
    """`hornbook pretrain` over inputs made here, with the device of each validation written down."""
    from pipeline import stages
    from pipeline.__main__ import parse, run_guarded
    from pipeline.system.processes import let_segments_grow

    let_segments_grow()
    stages.input_steps = _inputs
    _note_validations(config_path.parent / VALIDATIONS)
    return run_guarded(parse(["pretrain", str(config_path)]))


def _inputs(config: Any) -> dict[str, Any]:
    from pipeline import init
    from pipeline.storage.steps import Step
    from pipeline.storage.store import build

    data = Step("data", 1, {"seed": config.seed}, {})
    network = Step("init", 1, {"seed": config.seed}, {"data": data})
    makers = {data.fingerprint: _make_data, network.fingerprint: partial(init._make, config)}
    if not network.finished:
        build(network, makers, experiment=config.name)
    return {"data": data, "init": network}


def _make_data(folder: Any) -> dict[str, Any]:
    """This project's own modules, byte by byte, every sixteenth held out."""
    import numpy as np
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from pipeline.corpus.text.shards import write_token_set

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, **{character: 1 + i for i, character in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder.path / "tokenizer.json"))
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "pipeline").rglob("*.py"))]
    rows = [(np.array([*tokenizer.encode(text).ids, 0]), len(text.encode()), 0.5) for text in texts]
    for name, part in (("train", [r for i, r in enumerate(rows) if i % 16]), ("val", rows[::16])):
        write_token_set(folder.path / f"tokens/{name}-code", part, np.dtype("<u2"))
    return {"token_dtype": "<u2", "vocab_size": 512, "eos_token_id": 0}


def _note_validations(path: Path) -> None:
    from pipeline.training.validation import Validation

    plain = Validation.run

    def noted(self: Validation, network: Any, *args: Any, **settings: Any) -> Any:
        found = plain(self, network, *args, **settings)
        row = {"device": network.lm_head.weight.device.type, "seconds": round(self.seconds, 3), "share": self.share}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return found

    Validation.run = noted


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
