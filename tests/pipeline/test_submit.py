"""What `hornbook submit` would send, where there is no Slurm: the job files, their order, what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from data_corpus import make_config, write_corpus

from pipeline import config as configs
from pipeline import slurm as jobs
from pipeline import submit
from pipeline.slurm import Job, Options
from pipeline.storage import locks
from pipeline.storage.locks import FolderLock
from pipeline.system.errors import Busy, UserError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(root: Path, monkeypatch: pytest.MonkeyPatch):
    """An experiment that grows from another one, on a machine without Slurm."""
    monkeypatch.setattr(jobs, "available", lambda: False)
    corpus = write_corpus(root / "in")
    small = make_config(corpus, name="small", budget={"max_tokens": 8192}, model__max_position_embeddings=256)
    (root / "small.yaml").write_text(configs.to_yaml(small))
    init = {"method": "exact", "source": str(root / "small.yaml"), "train_source": True}
    return make_config(
        corpus, name="big", init=init, budget={"max_gpu_hours": 0.5}, model__hidden_size=32, model__intermediate_size=64
    )


def files(said: str) -> dict[str, str]:
    """experiment/stage -> text of every file that a dry run prints."""
    parts = re.split(r"^# (/\S+/runs/(\S+)/jobs/\S+/(\w+)\.sbatch)$", said, flags=re.M)
    return {f"{parts[i + 1]}/{parts[i + 2]}": parts[i + 3] for i in range(1, len(parts), 4)}


def test_a_dry_run_prints_a_chain_that_bash_can_read_and_writes_nothing(config, root, capsys):
    submit.run(config, "big.yaml", Options(partition="gpu", cpu_partition="cpu", time="2:00:00"), dry_run=True)
    found = files(capsys.readouterr().out)
    assert list(found)[:5] == ["big/data", "small/init", "small/pretrain", "big/init", "big/pretrain"]
    for text in found.values():
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        assert "#SBATCH --time=2:00:00" in text
    assert "afterok:<data of big>,afterok:<pretrain of small>" in found["big/init"]
    assert "afterok:<init of big>" in found["big/pretrain"]
    for stage, text in found.items():
        trains = stage.endswith(("pretrain", "evaluate"))
        assert ("--gpus-per-node=1" in text, "--partition=gpu" in text) == (trains, trains)
        assert ("--partition=cpu" in text) != trains
    assert not (root / "runs").exists()


def test_the_key_of_a_stage_is_known_before_its_source_is_trained_and_knows_what_decides_it(config, root, monkeypatch):
    def keys(changed) -> list[str]:
        return [task.key for task in submit.tasks(changed, "pretrain")]

    plain = keys(config)
    assert len(set(plain)) == len(plain) == 5
    config.name = "another"
    assert keys(config) == plain
    config.train.learning_rate *= 2
    assert [a == b for a, b in zip(keys(config), plain, strict=True)] == [True, True, True, True, False]
    config.init.source_overrides = {"train": {"learning_rate": 0.1}}
    assert [a == b for a, b in zip(keys(config), plain, strict=True)] == [True, True, False, False, False]
    monkeypatch.setenv("HORNBOOK_ROOT", str(root / "elsewhere"))
    assert not set(keys(config)) & set(plain)


def test_members_of_an_array_share_what_comes_before(config, capsys):
    members = [configs.from_values({**configs.to_values(config), "name": f"study/{n}", "seed": n}, "x") for n in (0, 0)]
    members[1].train.learning_rate = 1e-3
    submit.run_array("study", members, "study.yaml", Options(), at_once=1, dry_run=True)
    found = files(capsys.readouterr().out)
    assert list(found) == ["study/0/data", "small/init", "small/pretrain", "study/array"]
    assert "#SBATCH --array=0-1%1" in found["study/array"]
    assert found["study/array"].count("/resolved.yaml") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_node": "2"}, "one GPU"),
        ({"extra": ["constraint"]}, "--sbatch 'constraint'"),
        ({"notice_seconds": 0}, "--notice"),
    ],
)
def test_options_that_hornbook_cannot_use_are_refused(config, options, message):
    with pytest.raises(UserError, match=message):
        submit.run(config, "big.yaml", Options(**options), dry_run=True)


def test_a_source_that_may_not_be_trained_is_said_with_its_price(config):
    config.init.train_source = False
    with pytest.raises(UserError, match=r"it costs 8,192 tokens.*init\.train_source=true"):
        submit.run(config, "big.yaml", Options(), dry_run=True)


def test_without_slurm_the_commands_to_run_here_are_named(config):
    with pytest.raises(UserError, match=r"no sbatch.*hornbook pretrain big\.yaml"):
        submit.run(config, "big.yaml", Options())


def test_names_and_paths_with_spaces_and_percent_signs_are_quoted(tmp_path):
    folder = tmp_path / 'a "b" 100% c'
    job = Job("x.data.000000000000", folder, "data", ("data",), (folder / "config.yaml",), False)
    text = jobs.script(job, Options(setup=["module load cuda"], extra=["--constraint=a100"]))
    assert f'#SBATCH --output="{tmp_path}/a \\"b\\" 100%% c/data-%j.log"' in text
    assert "#SBATCH --constraint=a100" in text
    assert "\nmodule load cuda\n" in text


@pytest.mark.parametrize(
    ("left", "seconds"), [("1-02:03:04", "93784"), ("2:03:04", "7384"), ("59", "59"), ("0:30", "30"), ("UNLIMITED", "")]
)
def test_the_time_left_is_understood_in_every_form(left, seconds):
    function = re.search(r"^seconds\(\) \{.*?^\}", jobs.BODY.read_text(), re.S | re.M)
    assert function is not None
    done = subprocess.run(["bash", "-c", f'{function[0]}\nseconds "{left}"'], capture_output=True, text=True)
    assert done.stdout.strip() == seconds


def test_a_signal_that_comes_twice_is_one_request():
    code = (
        "import os, signal, time\nfrom pipeline.system import signals\nfrom pipeline.system.errors import Stopped\n"
        "signals.install()\nsignals.defer(True)\n"
        "for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):\n    os.kill(os.getpid(), number)\n"
        "assert signals.stop_requested() == 'SIGTERM'\ntime.sleep(signals.SAME_REQUEST_SECONDS)\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(1)\nexcept Stopped:\n    raise SystemExit(7)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr


def test_an_earlier_life_of_the_same_job_is_waited_for_and_any_other_owner_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with FolderLock(tmp_path, wait=False), pytest.raises(Busy, match="Slurm job 12"), FolderLock(tmp_path, wait=False):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    earlier = FolderLock(tmp_path, wait=False)
    earlier.__enter__()
    monkeypatch.setattr(locks.time, "sleep", lambda _: earlier.__exit__())
    with FolderLock(tmp_path, wait=False) as lock:
        assert lock.waited_seconds > 0
