"""What a CUDA card must show: speed and memory as expected, no waits, a killed run that resumes, kernels that agree.

In: a folder. Out: `gpu_check.json` and `table.txt` there, both written after every part, the parts that tell most
first, so that a check cut off at any minute is still useful. Each part is a process of its own with a time limit
(`parts.py`): one that hangs or poisons its CUDA context takes nothing with it, and what it had reported counts. Needs
torch (2.11 or newer), lightning, tokenizers, safetensors, numpy and pyyaml; the part `pretrain` also omegaconf,
datatrove, orjson, loguru, dill, jinja2 and tqdm (small wheels). `--cpu` runs every part at tiny sizes, where there is
no peak to compare speed with.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = {  # by part, in the order in which they run
    "ceilings": 45, "phi2": 120, "shapes": 120, "waits": 50, "pretrain": 150, "24 GB": 80, "kernels": 120, "rest": 300,
}  # fmt: skip
LEAST_SECONDS = 15  # to start torch and a card; a part with less left is left out
END_SECONDS = 5  # for a kill, the last table and this process' own end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--seconds", type=float, default=540, help="the check ends by then")
    parser.add_argument("--parts", nargs="+", choices=LIMIT_SECONDS, default=list(LIMIT_SECONDS), metavar="PART")
    args = parser.parse_args()
    ends = time.monotonic() + args.seconds - END_SECONDS
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "cpu": args.cpu, "parts": {}}
    for part in args.parts:
        limit = min(LIMIT_SECONDS[part], ends - time.monotonic())
        late = {"skipped": f"{args.seconds:g} s are over"}
        found["parts"][part] = run_part(part, args.out, args.cpu, limit) if limit >= LEAST_SECONDS else late
        (args.out / "gpu_check.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (args.out / "table.txt").write_text(table(found) + "\n", encoding="utf-8")
        print("\n".join(rows_of(part, found["parts"][part])), flush=True)
    raise SystemExit(not all(is_good(part) for part in found["parts"].values()))


def run_part(part: str, out: Path, cpu: bool, limit_seconds: float) -> dict[str, Any]:
    """What the part reported until its end, its error or its limit; its output goes to a log beside."""
    stem = part.replace(" ", "-")
    file, log = (out / f"{stem}.json").absolute(), out / f"{stem}.log"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.gpu_check.parts", part, str(file), *(["--cpu"] if cpu else [])]
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ}
    started, ended = time.monotonic(), "done"
    with open(log, "wb") as output:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if child.wait(timeout=limit_seconds):
                ended = f"exit code {child.returncode}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            ended = f"cut off after {limit_seconds:.0f} s"
        finally:
            _end(child)
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"ended": ended, "seconds": round(time.monotonic() - started, 1), "results": results}


def _end(child: "subprocess.Popen[bytes]") -> None:
    """The part's whole session: a part starts processes too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")[:400]


def is_good(part: dict[str, Any]) -> bool:
    results = part.get("results", {}).values()
    whole = "skipped" in part or part["ended"] == "done" or part["ended"].startswith("cut off")
    return whole and not any(isinstance(result, dict) and result.get("ok") is False for result in results)


# ---- the table


def table(found: dict[str, Any]) -> str:
    lines = [] if not found["cpu"] else ["a CPU and tiny sizes: no figures of a GPU"]
    for name, part in found["parts"].items():
        lines += rows_of(name, part)
    return "\n".join(lines)


def rows_of(name: str, part: dict[str, Any]) -> list[str]:
    """A part's head and one line for each of its results."""
    if "skipped" in part:
        return [f"{name}: left out, {part['skipped']}"]
    lines = [f"{name}: {part['ended']}, {part['seconds']:.0f} s"]
    return lines + [f"  {key}: {row_of(result)}" for key, result in part["results"].items()]


def row_of(result: Any) -> str:
    if not isinstance(result, dict):
        return str(result)
    if "milliseconds" in result or "predicted_bytes" in result:
        return _speed_row(result)
    if "packages" in result:
        missing = [name for name, number in result["packages"].items() if number == "missing"]
        card, free = result.get("card", "CPU"), _gibibytes(result.get("free_bytes"))
        return f"{card}, {free} GiB free, torch {result['packages']['torch']}, missing: {', '.join(missing) or 'none'}"
    if "checks" in result:
        bad = [f"{check} {row['error']:g} > {row['tolerance']:g}" for check, row in result["checks"].items()
               if not row["ok"]]  # fmt: skip
        return f"{len(result['checks'])} checks, {'; '.join(bad) or 'all within their tolerances'}"
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in
                     result.items() if value is not None)  # fmt: skip


def _speed_row(row: dict[str, Any]) -> str:
    what = f"{row['windows']}x{row['sequence_length']}, plan {_gibibytes(row['predicted_bytes'])} GiB"
    if "skipped" in row or "out_of_memory" in row:
        return f"{what}, {row.get('skipped') or 'memory ran out'}"
    parts = ", ".join(f"{name} {value:g}" for name, value in row["milliseconds"].items())
    peak = f"peak {_gibibytes(row.get('measured_bytes'))}, reserved {_gibibytes(row.get('reserved_bytes'))} GiB"
    mfu = f", MFU {100 * row['mfu']:.1f}%" if row.get("mfu") else ""
    llmq = f", LLMQ {row['llmq_tokens_per_second']}" if row.get("llmq_tokens_per_second") else ""
    save = ""
    if "save_bytes" in row:
        save = f", save {row['save_seconds']:g} s, peak +{_gibibytes(row['save_rise_bytes'])} GiB"
    return f"{what}, {peak}; {row['tokens_per_second']:,.0f} tokens/s{mfu}{llmq}; ms: {parts}{save}"


def _gibibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f}"


if __name__ == "__main__":
    main()
