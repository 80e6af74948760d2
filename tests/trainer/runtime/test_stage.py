"""run_stage: every way of ending gives one result, one line and one exit code."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import urllib.request
from pathlib import Path

import pytest
from finetune_api.evaluation_summary import ChatMessage, ProbeRecord
from finetune_api.facts import DataFacts, SourceFacts, TrainFacts
from finetune_api.failure import Failure
from finetune_api.protocol import ExitCode
from finetune_api.run_config import RunConfig
from finetune_api.stage_result import StageResult
from finetune_trainer.runtime.stage import termination_message
from finetune_trainer.runtime.telemetry import Report, serve_telemetry
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[3]


def start(folder: Path, body: str, run: str | None = None) -> subprocess.Popen[str]:
    """Start a stage whose work is `body`, in a process of its own."""
    config = {
        "job": {"name": "j", "namespace": "n", "uid": "u"},
        "stage": "prepare",
        "attempt": 3,
        "spec": {},
    }
    (folder / "run.json").write_text(run if run is not None else json.dumps(config))
    script = (
        "from finetune_api.stage_result import StageResult\n"
        "from finetune_trainer.runtime.errors import RetryableError, UserError\n"
        "from finetune_trainer.runtime.stage import run_stage\n"
    )
    script += "def work(run, report):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    script += "\nraise SystemExit(run_stage('prepare', work))\n"
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}",
        "FINETUNE_RUN_CONFIG": str(folder / "run.json"),
        "FINETUNE_TERMINATION_PATH": str(folder / "result.json"),
        "FINETUNE_TELEMETRY_PORT": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def end(folder: Path, process: subprocess.Popen[str]) -> tuple[int, StageResult, str]:
    """Exit code, result and log of a stage that ends by itself."""
    log, _ = process.communicate(timeout=60)
    return (
        process.returncode,
        StageResult.model_validate_json((folder / "result.json").read_bytes()),
        log,
    )


@pytest.mark.parametrize(
    ("body", "code", "outcome", "reason"),
    [
        (
            "return StageResult(stage='prepare', attempt=run.attempt, outcome='Succeeded')",
            ExitCode.OK,
            "Succeeded",
            None,
        ),
        (
            "raise UserError('BrokenRow', 'not JSON', 'fix it', file='a.jsonl', line=7)",
            ExitCode.USER_ERROR,
            "Failed",
            "BrokenRow",
        ),
        (
            "raise RetryableError('Unreachable', 'no answer')",
            ExitCode.RETRYABLE,
            "Failed",
            "Unreachable",
        ),
        ("raise MemoryError", ExitCode.USER_ERROR, "Failed", "OutOfMemory"),
        (
            "raise RuntimeError('[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: '"
            " 'can\\'t allocate memory: you tried to allocate 800000000000 bytes.')",
            ExitCode.USER_ERROR,
            "Failed",
            "OutOfMemory",
        ),
        (
            "raise UserError('Long', 'column ' * 9000, 'fix ' * 9000, file='f' * 9000)",
            ExitCode.USER_ERROR,
            "Failed",
            "Long",
        ),
        (
            "raise UserError('Odd', 'half \\ud800 of a pair \\x01\\n', 'fix it')",
            ExitCode.USER_ERROR,
            "Failed",
            "Odd",
        ),
        ("raise RuntimeError('\\ud800' * 2000)", ExitCode.RETRYABLE, "Failed", "InternalError"),
        ("raise OSError(28, 'No space left', 'x')", ExitCode.RETRYABLE, "Failed", "NoSpaceLeft"),
        ("{}['x']", ExitCode.RETRYABLE, "Failed", "InternalError"),
    ],
)
def test_every_ending_has_its_exit_code_and_result(
    tmp_path: Path, body: str, code: ExitCode, outcome: str, reason: str | None
) -> None:
    returned, result, log = end(tmp_path, start(tmp_path, body))
    assert (returned, result.outcome) == (code, outcome)
    assert (result.failure and result.failure.reason) == reason
    assert ("Traceback" in log) == (reason in ("InternalError", "NoSpaceLeft", "OutOfMemory"))
    if result.failure:
        assert (result.failure.stage, result.failure.attempt) == ("prepare", 3)
        assert "\n" not in result.failure.message


def test_a_broken_run_file_is_named(tmp_path: Path) -> None:
    code, result, _ = end(tmp_path, start(tmp_path, "return None", run='{"stage": "prepare"}'))
    assert code == ExitCode.USER_ERROR
    assert result.failure is not None
    assert result.failure.reason == "BadRunConfig"
    assert result.failure.file == str(tmp_path / "run.json")


def test_a_run_file_of_another_stage_is_refused(tmp_path: Path) -> None:
    run = RunConfig.model_validate(
        {
            "job": {"name": "j", "namespace": "n", "uid": "u"},
            "stage": "export",
            "attempt": 1,
            "spec": {},
        }
    )
    code, result, _ = end(tmp_path, start(tmp_path, "return None", run=run.model_dump_json()))
    assert code == ExitCode.USER_ERROR
    assert result.failure is not None
    assert "export" in result.failure.message


def stop_at_work(folder: Path, process: subprocess.Popen[str]) -> tuple[int, StageResult, str]:
    """Send SIGTERM to a stage once it has printed `working`, and wait for its end."""
    assert process.stdout is not None
    for line in process.stdout:
        if "working" in line:
            break
    process.send_signal(signal.SIGTERM)
    return end(folder, process)


def test_sigterm_ends_a_stage_as_preempted(tmp_path: Path) -> None:
    process = start(tmp_path, "import time\nprint('working', flush=True)\ntime.sleep(60)")
    code, result, _ = stop_at_work(tmp_path, process)
    assert (code, result.outcome) == (ExitCode.PREEMPTED, "Preempted")


def test_no_error_handler_mistakes_a_stop_for_a_fault(tmp_path: Path) -> None:
    body = """
        import time
        try:
            print("working", flush=True)
            time.sleep(60)
        except Exception as error:
            raise UserError("UnsupportedModel", f"a library was interrupted: {error}") from None
    """
    process = start(tmp_path, body)
    code, result, _ = stop_at_work(tmp_path, process)
    assert (code, result.outcome) == (ExitCode.PREEMPTED, "Preempted")


WAITS = {
    "a download in another thread": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(1) as pool:
            print("working", flush=True)
            list(pool.map(time.sleep, [600]))
    """,
    "a call that does not return": """
        import ctypes
        print("working", flush=True)
        # Like a disk or a driver that does not answer: no signal ends the wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        ctypes.CDLL(None).sleep(600)
    """,
}


@pytest.mark.parametrize("wait", list(WAITS))
def test_sigterm_ends_a_stage_wherever_it_waits(tmp_path: Path, wait: str) -> None:
    process = start(tmp_path, f"import signal, time\n{textwrap.dedent(WAITS[wait])}")
    code, result, _ = stop_at_work(tmp_path, process)
    assert (code, result.outcome) == (ExitCode.PREEMPTED, "Preempted")


def test_a_stopped_stage_releases_what_it_holds(tmp_path: Path) -> None:
    body = """
        import time
        try:
            print("working", flush=True)
            time.sleep(60)
        finally:
            print("released", flush=True)
    """
    process = start(tmp_path, body)
    code, _, log = stop_at_work(tmp_path, process)
    assert code == ExitCode.PREEMPTED
    assert "released" in log


def test_sigterm_while_a_failure_is_reported_ends_a_stage_as_preempted(tmp_path: Path) -> None:
    body = """
        import time
        class Slow(Exception):
            def __str__(self):
                print("working", flush=True)
                time.sleep(60)
                return "slow"
        raise Slow
    """
    process = start(tmp_path, body)
    code, result, log = stop_at_work(tmp_path, process)
    assert (code, result.outcome) == (ExitCode.PREEMPTED, "Preempted"), log


@given(st.text(max_size=6000), st.text(max_size=6000), st.integers(0, 100))
def test_the_termination_message_is_always_valid_and_small(
    message: str, answer: str, hosts: int
) -> None:
    result = StageResult(
        stage="train",
        attempt=1,
        outcome="Failed",
        failure=Failure(
            reason="X", message=message[:4096], remedy=message[:4096], file=answer[:4096]
        ),
        probe=ProbeRecord(
            messages=[ChatMessage(role="user", content="q")], answer=answer, max_tokens=8
        ),
        train=TrainFacts(
            steps=1, world_size=1, engine="E", hosts=[f"pod-{i}.example" * 3 for i in range(hosts)]
        ),
    )
    encoded = termination_message(result)
    assert len(encoded) <= 4096
    back = StageResult.model_validate_json(encoded)
    assert back.failure is not None
    assert back.failure.reason == "X"
    assert back.failure.message[:40] == message[:40]


def test_facts_about_many_sources_are_shortened_before_those_that_are_needed() -> None:
    digest = "sha256:" + 64 * "a"
    source = SourceFacts(
        uri="s3://bucket/" + 200 * "x",
        revision=digest,
        version=40 * "v",
        digest=digest,
        files=99,
        rows=9,
        bytes=9,
    )
    counts = dict.fromkeys(
        ("train_examples", "eval_examples", "train_tokens", "eval_tokens", "train_sequences"), 9
    )

    def shortened(sources: int) -> DataFacts:
        data = DataFacts(
            format="chat", digest=digest, longest_example=9, sources=[source] * sources, **counts
        )
        result = StageResult(stage="prepare", attempt=1, outcome="Succeeded", data=data)
        encoded = termination_message(result)
        assert len(encoded) <= 4096
        found = StageResult.model_validate_json(encoded).data
        assert found is not None
        assert found.train_examples == 9
        return found

    assert shortened(3).sources == [source] * 3
    without = source.model_copy(update={"uri": None, "version": None, "digest": None})
    assert shortened(17).sources == [without] * 17


def test_even_texts_that_json_must_escape_fit_the_termination_message() -> None:
    text = "\x01" * 4096
    result = StageResult(
        stage="train",
        attempt=1,
        outcome="Failed",
        failure=Failure(reason="X", message=text, remedy=text, file=text),
        train=TrainFacts(steps=1, world_size=64, engine="E", hosts=["h" * 253] * 64),
    )
    encoded = termination_message(result)
    assert len(encoded) <= 4096
    assert StageResult.model_validate_json(encoded).failure is not None


def test_telemetry_serves_progress_metrics_and_health() -> None:
    report = Report("train", 2, clock=lambda: 12.5)
    report.update("training", step=3, total_steps=9, loss=1.25)
    server = serve_telemetry(report)

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}") as answer:
            return str(answer.read().decode())

    try:
        progress = json.loads(get("/progress"))
        assert (progress["step"], progress["totalSteps"], progress["loss"]) == (3, 9, 1.25)
        assert (progress["message"], progress["updatedAt"]) == ("training", 12.5)
        assert "finetune_train_loss 1.25" in get("/metrics")
        assert "tokens_per_second" not in get("/metrics")
        assert get("/healthz") == "ok\n"
    finally:
        server.shutdown()
        server.server_close()


def test_a_client_that_closes_its_connection_leaves_no_traceback_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve_telemetry(Report("train", 1))
    before, place = set(threading.enumerate()), ("127.0.0.1", server.server_port)
    try:
        with socket.create_connection(place) as client:
            client.sendall(b"GET /progress")
            # Closed by a reset, as a port check does it.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The server accepts connections in order.
        with urllib.request.urlopen(f"http://127.0.0.1:{place[1]}/healthz") as answer:
            assert answer.status == 200
        for thread in set(threading.enumerate()) - before:
            thread.join(60)
    finally:
        server.shutdown()
        server.server_close()
    assert capsys.readouterr().err == ""


def test_a_process_can_print_the_version() -> None:
    out = subprocess.run(
        [sys.executable, "-c", "import finetune_trainer; print(finetune_trainer.__version__)"],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out == "0.1.0\n"
