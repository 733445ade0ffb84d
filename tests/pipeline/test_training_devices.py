"""Where a run computes, and the numbers that MFU is judged by."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import TrainConfig
from pipeline.system.errors import UserError
from pipeline.training import devices, memory

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4070", 58.3),
        ("NVIDIA GeForce RTX 3060", 25.5),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4060 Ti", 44.1),
        ("NVIDIA GeForce RTX 4080", 97.5),
        ("NVIDIA GeForce RTX 5080", 112.6),
        ("Tesla T4", 8.1),
        ("Tesla V100-SXM2-32GB", 15.7),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8),
    ],
)
def test_cards_are_found_by_the_name_that_the_driver_reports(name: str, tflops: float) -> None:
    card = devices.find_card(name)
    assert card is not None
    assert card["bf16_dense_tflops"] == tflops
    assert set(card) - {"emulates_bf16"} == {
        "match",
        "memory_gb",
        "bf16_dense_tflops",
        "bandwidth_gb_per_second",
        "price_per_hour",
    }


@pytest.mark.parametrize(
    "name",
    [
        "Some Accelerator 9",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GB200",
        "NVIDIA A1000",
        "NVIDIA GeForce RTX 4070 Ti SUPER",
        "NVIDIA GeForce RTX 4090 D",
    ],
)
def test_an_unknown_card_has_no_peak(name: str) -> None:
    assert devices.find_card(name) is None


def test_a_card_that_only_emulates_bf16_computes_in_fp32_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert devices._precision("auto", "cuda") == ("32-true", devices.EMULATED)
    assert devices.EMULATED in devices._precision("bf16-sr", "cuda")[1]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert devices._precision("auto", "cuda")[0] == "bf16-mixed"


def test_the_plan_fills_what_is_free_of_a_card_and_what_this_process_holds_of_it(monkeypatch) -> None:
    share = 1.0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20, 24))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: share)
    assert memory._card_bytes() == 23
    share = 0.5
    assert memory._card_bytes() == 12


@pytest.mark.parametrize(
    ("flags", "precision"), [({"avx512_bf16"}, "bf16-mixed"), ({"amx_bf16"}, "bf16-mixed"), ({"avx2"}, "32-true")]
)
def test_a_cpu_computes_in_bf16_only_where_it_is_fast(
    flags: set[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset(flags))
    machine = devices.choose(TrainConfig(device="cpu"))
    assert machine.precision == precision
    assert machine.memory.peak_bytes() > 10**7
    assert machine.peak_flops
    assert machine.mfu(machine.peak_flops) is None  # a moment's speed of a CPU is no peak
    assert replace(machine, device=torch.device("cuda"), peak_flops=1e12).mfu(4e11) == pytest.approx(0.4)
    assert "measured" in machine.describe()
    assert devices.choose(TrainConfig(device="cpu", precision="bf16-true")).precision == "bf16-true"


@pytest.mark.parametrize(
    ("precision", "flags", "setting"),
    [
        ("auto", {"avx512_bf16"}, "medium"),
        ("32-true", {"avx512_bf16"}, "medium"),  # oneDNN's fp32 products are fp32-accurate there
        ("auto", {"amx_bf16"}, "medium"),
        ("32-true", {"amx_bf16"}, "highest"),  # "medium" would compute in bf16 through AMX
    ],
)
def test_who_asks_for_fp32_gets_products_as_accurate_as_fp32(
    precision: str, flags: set[str], setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset(flags))
    before = torch.get_float32_matmul_precision()
    try:
        devices.choose(TrainConfig(device="cpu", precision=precision))
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_was_chosen_for_the_cpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setattr(devices.cpu_kernels, "why_not", lambda: None)
    said = devices.choose(TrainConfig(device="cpu")).describe()
    assert "avx512_bf16" in said
    assert "passes between products fused" in said
    monkeypatch.setattr(devices.cpu_kernels, "why_not", lambda: "no C compiler")
    monkeypatch.setattr(devices.platform, "libc_ver", lambda: ("", ""))
    said = devices.choose(TrainConfig(device="cpu")).describe()
    assert "torch's own passes (no C compiler)" in said
    assert "allocator as it comes (no glibc)" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_names_what_is() -> None:
    with pytest.raises(UserError, match=r"train\.device is 'cuda', this machine has cpu"):
        devices.choose(TrainConfig(device="cuda"))


def test_fp8_on_a_cpu_says_what_it_needs_and_which_key_mends_it() -> None:
    with pytest.raises(UserError, match=r"train\.float8 is 'tensorwise': it needs a CUDA card.*train\.float8=none"):
        devices.choose(TrainConfig(device="cpu", float8="tensorwise"))


def test_a_run_on_a_card_never_spends_time_on_the_threads_of_the_cpu() -> None:
    from pipeline.training.devices import Threads

    threads = Threads("cuda")
    assert threads.most == 1
    assert threads.review() is None


REPLACED_BLOCKS = """
from pipeline.training.memory import set_up_allocator
said = set_up_allocator()
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
torch.ones(2**22)
before = resident()
blocks = [torch.ones(2**21) for _ in range(12)]
for number in range(12):
    blocks[number] = None
    blocks[number] = torch.ones(2**21)
print(said, round((resident() - before) / 2**23, 1), sep="|")
"""


def _replaced_blocks(huge_pages: str) -> tuple[str, float]:
    """What was chosen, and blocks of memory held once 12 were replaced one by one."""
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": huge_pages, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", REPLACED_BLOCKS]
    said, held = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split("|")
    return said, float(held)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_big_blocks_are_kept_unless_torch_is_told_otherwise() -> None:
    assert _replaced_blocks("0")[0] == "glibc keeps big blocks"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_the_room_of_a_big_block_is_used_again_with_huge_pages() -> None:
    said, held = _replaced_blocks("1")
    if said != "big blocks in huge pages":
        pytest.skip(f"this machine gives no huge pages: {said}")
    assert 12.0 <= held <= 12.5
