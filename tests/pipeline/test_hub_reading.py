"""Models and text of the hub, against a stand-in on loopback that speaks the hub's protocol (tests/hub_server.py)."""

import io
import time
from pathlib import Path
from types import SimpleNamespace

import hub_server
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from data_corpus import MODEL, prose
from public_model import write_public_model

from pipeline import study
from pipeline.corpus.sources.records import HuggingFace
from pipeline.corpus.steps import make_source
from pipeline.storage.hub import MODEL_FILES, Unavailable, commit_of, local_folder
from pipeline.storage.steps import read_manifest
from pipeline.studies.file import read as read_study
from pipeline.studies.members import members, trainings
from pipeline.system.errors import Failure, UserError

README = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n---\n"
SHARDS, ROWS = 3, 20
SOURCE = {"type": "huggingface", "dataset": "people/texts", "hub_wait_seconds": 0.01}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in that this process and its commands ask."""
    with hub_server.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        hub_server.reload_settings()
        yield hub
    monkeypatch.undo()
    hub_server.reload_settings()


def shard(number: int, word: str = "") -> bytes:
    rows = [{"text": f"{word}{prose(number * ROWS + i)}", "site": f"s{(number * ROWS + i) % 12}"} for i in range(ROWS)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=5)
    return out.getvalue()


def texts(word: str = "") -> dict[str, bytes]:
    return {"README.md": README, **{f"data/train-{n:05d}.parquet": shard(n, word) for n in range(SHARDS)}}


def write_config(root: Path, **more) -> Path:
    values = {
        "name": "hubby",
        "data": {
            "sources": {"web": {**SOURCE, "group_key": "site"}},
            "filters": {"gopher_quality": None, "quality": None},
            "scorer": None,
            "tasks": 3,
            "workers": 1,
            "validation": {"share": 0.2},
            "near_dedup_similarity": 0.95,
        },
        "model": MODEL,
        "train": {"sequence_length": 32, "device": "cpu"},
        "budget": {"max_tokens": 10_000},
        "tracking": {"to": "none"},
        **more,
    }
    path = root / "hubby.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def hornbook(*words: object, root: Path, code: int = 0, **env: str) -> str:
    done = processes.hornbook(*map(str, words), root=root, **env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def documents(root: Path) -> int:
    return read_manifest(root / "runs" / "hubby" / "data")["sources"]["web"]["read"]


def test_every_shard_is_of_the_commit_that_main_was_at_the_start_and_manifest_and_card_name_it(
    hub: hub_server.Hub, tmp_path: Path
) -> None:
    first = hub.commit("datasets", "people/texts", texts())
    moved: list[str] = []
    move = lambda: moved or moved.append(hub.commit("datasets", "people/texts", texts("New. ")))  # noqa: E731
    hub.faults.append(hub_server.Fault(r"GET .*train-00000", call=move))
    config = write_config(tmp_path)
    assert f"people/texts@main is commit {first[:12]}" in hornbook("data", config, root=tmp_path)
    assert moved
    assert len(hub.asked(f"/resolve/{first}/data/train-")) > 2
    assert not hub.asked(moved[0])
    folder = (tmp_path / "runs" / "hubby" / "data").resolve()
    assert read_manifest(folder)["sources"]["web"]["revision"] == first
    assert first in (folder / "data_card.md").read_text()
    where = hornbook("where", "data", config, root=tmp_path).strip()
    assert Path(where).resolve() == folder  # `main` has moved, and the stages after data use the record

    assert f"commit {moved[0][:12]} (it was {first[:12]})" in hornbook("data", config, root=tmp_path)
    again = (tmp_path / "runs" / "hubby" / "data").resolve()
    assert again != folder
    assert read_manifest(again)["sources"]["web"]["revision"] == moved[0]

    hub.stop()
    said = hornbook("data", config, root=tmp_path)
    assert "data: up to date" in said
    assert "stays at commit" in said


def test_a_stopped_reading_resumes_with_its_commit_and_the_shards_that_are_missing(
    hub: hub_server.Hub, tmp_path: Path
) -> None:
    first = hub.commit("datasets", "people/texts", texts())
    fault = hub_server.Fault(r"/resolve/.*train-00001", code=404, headers={"X-Error-Code": "EntryNotFound"})
    hub.faults.append(fault)
    config = write_config(tmp_path)
    said = hornbook("data", config, root=tmp_path, code=2)
    assert f"people/texts@{first}: shard 1" in said
    assert "lists a file and does not give it" in said
    assert "Traceback" not in said
    hub.faults.clear()
    hub.commit("datasets", "people/texts", texts("New. "))
    hub.requests.clear()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("artifacts/data-read/*/logs/completions/00000")}
    hornbook("data", config, root=tmp_path)
    assert done
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert hub.asked(f"{first}/data/train-00001")
    assert documents(tmp_path) == SHARDS * ROWS


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The library's own five tries of one request, without their 23 s; how long it would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=slept.append, time=time.time))
    return slept


def read(commit: str, tasks: int = 1) -> list[str]:
    source = make_source({**SOURCE, "revision": commit}, "data.sources.web")
    return [document.text for task in range(tasks) for document in source.documents(task, tasks)]


WHOLE = [prose(n) for n in range(SHARDS * ROWS)]


@pytest.mark.parametrize("times", [1, 6])
@pytest.mark.parametrize(
    "fault",
    [
        {"code": 429, "headers": {"Retry-After": "1"}},
        {"code": 503},
        {"code": 500},
        {"cut_after_bytes": 700},
    ],
    ids=["429", "503", "500", "cut"],
)
def test_a_busy_or_broken_hub_costs_a_wait_that_is_shown_and_no_record(
    hub: hub_server.Hub, quick: list[float], fault: dict, times: int, capfd: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    commit = hub.commit("datasets", "people/texts", texts())
    hub.faults.append(hub_server.Fault(r"GET .*train-00001", times=times, **fault))
    assert read(commit) == WHOLE
    assert hub.faults[0].times == 0
    assert len(quick) == min(times, 5)
    if fault.get("code") == 429:
        assert quick[0] == 2.0  # what Retry-After says, and one for rounding
    if times > 5:  # the wait is ours, or that of datasets, which takes ours
        said = capfd.readouterr().out + caplog.text
        assert "shard 1 after 0 records" in said or "Got disconnected" in said
        assert "waiting 0.01 s (1 of 20)" in said or "Retrying in 0.01sec [1/20]" in said


def test_a_hub_that_stays_broken_ends_the_reading_with_the_shard_and_the_time_waited(
    hub: hub_server.Hub, quick: list[float]
) -> None:
    commit = hub.commit("datasets", "people/texts", texts())
    hub.faults.append(hub_server.Fault(r"GET .*train-00002", code=503))
    with pytest.raises(
        Failure, match=r"people/texts@\w{40}: shard 2 after 0 records: .*503.*for 0 s; the same command"
    ):
        read(commit)


def test_a_cut_inside_a_shard_repeats_and_loses_no_record(
    hub: hub_server.Hub, quick: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With row groups that are fetched one by one, the connection ends after the first ones were read."""
    commit = hub.commit("datasets", "people/texts", texts())
    plain, failed = HuggingFace._records_of, []

    def cut(self: HuggingFace, shard, part: int):
        class Shard:
            def __iter__(self):
                for number, record in enumerate(shard):
                    if number == 7 and not failed:
                        failed.append(part)
                        raise ConnectionResetError("cut")
                    yield record

            def skip(self, n: int):
                return shard.skip(n)

        return plain(self, Shard(), part)

    monkeypatch.setattr(HuggingFace, "_records_of", cut)
    assert read(commit) == WHOLE
    assert failed == [0]


@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
def test_the_shards_of_a_step_share_the_records_of_all_files(hub: hub_server.Hub, tasks: int) -> None:
    assert sorted(read(hub.commit("datasets", "people/texts", texts()), tasks)) == sorted(WHOLE)


@pytest.mark.parametrize(("code", "token"), [(401, None), (403, "hf_of_this_test")])
@pytest.mark.parametrize(("kind", "page"), [("model", ""), ("dataset", "datasets/")])
def test_what_is_gated_names_the_licence_page_and_the_token(
    hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, kind: str, page: str, code: int, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.commit(f"{kind}s", "people/closed", texts())
    hub.gated["people/closed"] = code
    with pytest.raises(UserError) as caught:
        commit_of("people/closed@main", kind, "its.key")
    said = str(caught.value)
    assert said.startswith(f"its.key is 'people/closed@main', and that {kind} is gated")
    assert f"https://huggingface.co/{page}people/closed" in said
    assert ("has no access yet" if token else "HF_TOKEN is not set") in said
    if kind == "model":
        with pytest.raises(UserError, match=r"that model is gated .*HF_TOKEN"):
            local_folder("people/closed", "init.source", MODEL_FILES)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_name_or_revision_that_is_not_there_is_named_and_a_renamed_one_is_found(
    hub: hub_server.Hub, tmp_path: Path, kind: str
) -> None:
    commit = hub.commit(f"{kind}s", "people/new", texts())
    hub.renamed["people/old"] = "people/new"
    assert commit_of("people/old@main", kind, "a.key") == commit_of("people/new@main", kind, "a.key") == commit
    with pytest.raises(UserError, match=rf"a\.key is 'people/none@main', and the hub has no {kind} of this name"):
        commit_of("people/none@main", kind, "a.key")
    with pytest.raises(UserError, match=r"has no revision 'v9'; expected a branch, tag or commit"):
        commit_of("people/new@v9", kind, "a.key")
    if kind == "dataset":
        source = make_source({**SOURCE, "dataset": "people/old", "revision": commit}, "data.sources.web")
        assert [document.text for document in source.documents(0, 1)] == WHOLE


def test_a_hub_that_does_not_answer_is_told_from_one_that_refuses(hub: hub_server.Hub) -> None:
    hub.stop()
    with pytest.raises(Unavailable, match=r"did not give it"):
        commit_of("people/texts@main", "dataset", "a.key")


SHAPE = {
    "family": "llama", "vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("public")
    write_public_model(folder / "model", SHAPE)
    files = (path for path in (folder / "model").iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files} | {"pytorch_model.bin": b"never asked for"}


def test_after_fetch_the_stages_run_without_a_network(
    hub: hub_server.Hub, tmp_path: Path, model_files: dict[str, bytes]
) -> None:
    text, model = hub.commit("datasets", "people/texts", texts()), hub.commit("models", "people/small", model_files)
    path = write_config(tmp_path, model=SHAPE, init={"source": "people/small", "method": "exact"})
    hornbook("init", path, "--dry-run", root=tmp_path)
    assert {Path(request.path).name for request in hub.asked("/resolve/")} <= {"config.json"}
    said = hornbook("data", path, root=tmp_path, code=2, HF_HUB_OFFLINE="1")
    assert "or run `hornbook fetch <config>` where there is a network" in said

    said = hornbook("fetch", path, root=tmp_path)
    assert f"fetch: data.sources.web, {SHARDS * ROWS} documents" in said
    assert not hub.asked(r"pytorch_model\.bin")
    hub.stop()
    (tmp_path / "elsewhere").mkdir()
    for verb in ("data", "init"):
        hornbook(verb, path, root=tmp_path, HF_HUB_OFFLINE="1")
    runs = tmp_path / "runs" / "hubby"
    assert read_manifest(runs / "data")["sources"]["web"]["revision"] == text
    assert read_manifest(runs / "init")["source"] == f"people/small@{model}"
    assert f"people/small@{model}" in read_manifest(runs / "init")["inputs"]["source"]["fingerprint"]


@pytest.mark.usefixtures("root")
def test_all_members_of_a_study_are_of_the_commit_that_main_was_when_it_began(
    hub: hub_server.Hub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first = hub.commit("datasets", "people/texts", texts())
    write_config(tmp_path)
    axes = {"rate": {"low": {"train.learning_rate": 1e-3}, "high": {"train.learning_rate": 2e-3}}}
    values = {"name": "pair", "base": "hubby.yaml", "equal": {"flops": 1e9}, "seeds": [1], "axes": axes}
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(values))
    study.run(str(path), dry_run=True)
    assert not hub.requests
    for _ in range(2):  # the second time from the record: main has moved
        study.run(str(path), only_report=True)
        found = [one.config for one in trainings(members(read_study(str(path))))]
        assert [config.data.sources["web"]["revision"] for config in found] == [first, first]
        hub.commit("datasets", "people/texts", texts("New. "))
    assert len(hub.asked("/revision/main")) == 1
    assert capsys.readouterr().out.count(f"people/texts@main is commit {first[:12]}") == 1
