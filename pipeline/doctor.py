"""`hornbook doctor`: what this machine has, what hornbook will use of it, and what is missing for what.

In: nothing. Out: one row per thing that a stage may need: found or not, and what to do about it. Writes nothing; its
only network request asks whether HORNBOOK_REMOTE answers.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.remote import place
from pipeline.storage.files import root
from pipeline.system.errors import Failure, UserError
from pipeline.system.progress import format_bytes

OK, NOTE, MISSING = "ok", "note", "missing"
ANSWER_SECONDS = 10.0  # a remote without an answer by then counts as missing
LEAST_FREE_BYTES = 5_000_000_000  # tiny's artifacts take a tenth of this, one 2.7B checkpoint six times this
EXTRAS = {
    "docs": (("pypdf", "docx"), "PDF and Word files as text sources"),
    "finetune": (("peft", "transformers"), "hornbook finetune"),
    "quantize": (("torchao",), "int8 and 4-bit copies, fp8 products"),
    "gguf": (("gguf",), "GGUF files for llama.cpp"),
    "eval": (("lm_eval",), "standard tasks in hornbook evaluate"),
}


@dataclass(frozen=True)
class Finding:
    """`state`: ok, note (it works, with a remark) or missing (something cannot be done). `fix`: what to do."""

    name: str
    state: str
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Every finding, in the order in which they are shown."""
    return [
        _python(), *_compute(), _memory(), _disk(), _remote(), _compiler(), _sandbox(), _slurm(), _tracking(), _hub(),
        *_extras(),
    ]  # fmt: skip


def as_json(findings: list[Finding]) -> dict[str, Any]:
    rows = [{"name": f.name, "state": f.state, "found": f.found, "mend": f.fix} for f in findings]
    return {"ready": all(f.state != MISSING or f.name.startswith("extra") for f in findings), "findings": rows}


def show(findings: list[Finding]) -> str:
    """For a person: one line a finding, and below it how to fix what is missing."""
    width = max(len(f.name) for f in findings)
    fix = f"\n{'':<{8 + width}}   -> "
    return "\n".join(f"{f.state:<8} {f.name:<{width}}  {f.found}{fix + f.fix if f.fix else ''}" for f in findings)


def _python() -> Finding:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("lightning", "datatrove", "datasets", "wandb"))
    return Finding("python", OK, f"{platform.python_version()} at {sys.executable}; {versions}")


def _compute() -> list[Finding]:
    import torch

    from pipeline.config import TrainConfig
    from pipeline.training import devices

    machine = devices.choose(TrainConfig())
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    findings = [Finding("torch", OK, f"{torch.__version__}, {build}")]
    if torch.cuda.is_available():
        findings += [_card(index) for index in range(torch.cuda.device_count())]
    elif shutil.which("nvidia-smi"):
        fix = "install a torch with CUDA into the environment that HORNBOOK_PYTHON names"
        if torch.version.cuda:
            fix = "is CUDA_VISIBLE_DEVICES empty, or the driver older than this torch's CUDA? nvidia-smi shows both"
        findings.append(Finding("card", MISSING, "there is an NVIDIA driver, but torch sees no card", fix))
    else:
        findings.append(Finding("card", NOTE, "none; the CPU computes: configs/tiny.yaml is made for it"))
    return [*findings, Finding("will use", OK, machine.describe())]


def _card(index: int) -> Finding:
    import torch

    from pipeline.training import devices

    name = torch.cuda.get_device_name(index)
    free, total = torch.cuda.mem_get_info(index)
    bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "emulated bf16: fp32 is used"
    busy = free < 0.9 * total
    known = "" if devices.find_card(name) else "; not in configs/gpus.yaml, so no MFU and no price"
    fix = "another process holds memory of it: nvidia-smi names it; CUDA_VISIBLE_DEVICES chooses a card" if busy else ""
    version = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    driver = f", driver {version.splitlines()[0]}" if version else ""
    found = f"{index}: {name}, {format_bytes(free)} of {format_bytes(total)} free, {bf16}{driver}{known}"
    return Finding("card", NOTE if busy else OK, found, fix)


def _memory() -> Finding:
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * size
    path = Path("/sys/fs/cgroup/memory.max")
    text = path.read_text().strip() if path.is_file() else ""
    limit = int(text) if text.isdigit() else None
    within = f"; this process may use {format_bytes(limit)} (cgroup)" if limit and limit < total else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("memory", OK, f"{format_bytes(pages * size)} of {format_bytes(total)} free, {cores} cores{within}")


def _disk() -> Finding:
    here = root().resolve()
    there = next(path for path in (here, *here.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = (
        f"{format_bytes(free)} free at {here} (HORNBOOK_ROOT), temporary files in {os.environ.get('TMPDIR', '/tmp')}"
    )
    if not os.access(there, os.W_OK):
        return Finding(
            "disk", MISSING, f"{there} is read-only for you", "set HORNBOOK_ROOT to a folder you may write to"
        )
    if free < LEAST_FREE_BYTES:
        return Finding(
            "disk", NOTE, found, "`hornbook clean` frees what no experiment needs; HORNBOOK_ROOT moves it all"
        )
    return Finding("disk", OK, found)


def _remote() -> Finding:
    there, found = place.place(), list[str | Exception]()
    if there is None:
        fix = f"where disks vanish: export {place.REMOTE}=s3://bucket/folder (docs/reliability.md)"
        return Finding("remote", NOTE, f"{place.REMOTE} is not set: nothing is copied elsewhere", fix)

    def ask() -> None:
        try:
            found.append(f"{len(there.names('runs'))} experiments there")
        except (UserError, Failure) as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    answer = found[0] if found else f"no answer within {ANSWER_SECONDS:.0f} s"
    if found and isinstance(answer, str):
        return Finding("remote", OK, f"{there.name} answers, {answer}")
    fix = f"fix it or unset {place.REMOTE}: stages would train without copies, and an empty machine would not start"
    return Finding("remote", MISSING, f"{there.name} cannot be read: {answer}", fix)


def _compiler() -> Finding:
    from model import cpu_kernels

    missing = cpu_kernels.why_not()
    if missing is None:
        return Finding("compiler", OK, "fused passes on the CPU compile and load")
    return Finding("compiler", NOTE, f"torch's own passes are used on the CPU: {missing}", "on Debian: apt install gcc")


def _sandbox() -> Finding:
    if shutil.which("bwrap") and _output(["bwrap", "--ro-bind", "/", "/", "--unshare-all", "true"]) is not None:
        return Finding("sandbox", OK, "bubblewrap: programs that a model wrote run without network and home")
    if shutil.which("unshare") and _output(["unshare", "--user", "--net", "--pid", "--fork", "true"]) is not None:
        return Finding("sandbox", OK, "user namespaces, no bubblewrap")
    fix = "on Debian: apt install bubblewrap; inside a container it may need more rights"
    return Finding("sandbox", NOTE, "none: only programs that hornbook's own templates wrote can be run", fix)


def _slurm() -> Finding:
    found = _output(["sinfo", "--version"]) if shutil.which("sinfo") else None
    if found is None:
        return Finding("slurm", NOTE, "none: stages run here, one command each")
    job = os.environ.get("SLURM_JOB_ID")
    return Finding("slurm", OK, f"{found}{f', inside job {job}' if job else ''}: hornbook submit <config>")


def _tracking() -> Finding:
    from pipeline.training.tracking import wandb_mode

    mode = wandb_mode()
    if mode == "online":
        return Finding("wandb", OK, "online, with the key of the environment or of netrc")
    return Finding(
        "wandb", OK, f"{mode}: metrics.jsonl has everything, `wandb login` or WANDB_API_KEY mirrors it online"
    )


def _hub() -> Finding:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    offline = os.environ.get("HF_HUB_OFFLINE") not in (None, "", "0")
    return Finding(
        "hub", NOTE if offline else OK, f"cache at {home}{'; HF_HUB_OFFLINE: nothing is fetched' if offline else ''}"
    )


def _extras() -> list[Finding]:
    findings = []
    for extra, (modules, use) in EXTRAS.items():
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        if absent:
            fix = f"{sys.executable} -m pip install -c constraints.txt -e '.[{extra}]'"
            findings.append(Finding(f"extra {extra}", MISSING, f"no {', '.join(absent)}: needed for {use}", fix))
        else:
            findings.append(Finding(f"extra {extra}", OK, use))
    return findings


def _output(words: list[str]) -> str | None:
    """What a command prints, or None if it fails or takes over ten seconds."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
