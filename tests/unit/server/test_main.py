"""The command line: what it serves, what it compiles, and how it says no."""

import shutil
import subprocess
from importlib.metadata import entry_points

import httpx
import pytest
from pierhead_server.__main__ import main

from tests.unit.server.calls import instances
from tests.unit.server.conftest import PREDICT, PROGRAM, make_environment, run, wait_listening, wait_until


def test_pierhead_server_is_its_name():
    (script,) = entry_points(group="console_scripts", name="pierhead-server")
    assert script.load() is main


def test_help_says_what_there_is():
    ended = run("--help")
    assert ended.returncode == 0
    for word in ("serve", "compile", "convert", "--model DIR", "--host", "--port"):
        assert word in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "invalid choice: 'dance'"),
        (["--modle"], "unrecognized arguments: --modle"),
        (["--port", "http"], "argument --port: invalid int value: 'http'"),
        (["compile"], "compile needs --model DIR"),
        (["convert", "one"], "convert needs SOURCE and DESTINATION"),
        (["serve", "one"], "convert needs SOURCE and DESTINATION, and nothing else takes a path"),
    ],
)
def test_wrong_arguments_are_told(arguments, message):
    ended = run(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "SettingsInvalid: PIERHEAD_ARTIFACT_URI: Field required\n"),
        (["--model", "/no/such folder"], "ArtifactNotFound: file:///no/such%20folder: no such folder\n"),
        (["--model", "/", "--port", "99999"], "SettingsInvalid: PIERHEAD_PORT: "),
        (
            ["convert", "/tmp", "https://example.com/x"],
            "SettingsInvalid: DESTINATION: https://example.com/x: must be a f",
        ),
        (
            ["convert", "/tmp", "gs://models"],
            "SettingsInvalid: DESTINATION: gs://models: must be a folder, or a path in",
        ),
        (["convert", "gs:/x", "/tmp/x"], "ArtifactNotFound: file://"),
        (["compile", "--model", "/no/such/folder"], "ArtifactInvalid: model.yaml: missing: every artifact needs one\n"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, line):
    ended = run(*arguments)
    assert ended.returncode == 1
    assert line in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", [("compile", "--model", "/"), ("convert", "/", "/nowhere/artifact")])
def test_commands_that_need_torch_say_so_where_it_is_not(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("pierhead_server.devices.has_torch", lambda: False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("pierhead_server.logs.configure_logging", lambda **_: None)
    monkeypatch.setattr("sys.argv", ["pierhead-server", *command])
    monkeypatch.setenv("PIERHEAD_TERMINATION_LOG", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert f"SettingsInvalid: {command[0]} needs PyTorch: run it in the image that has it" in capsys.readouterr().err


def test_folder_is_served_by_its_name_whatever_the_environment_says(obedient_folder, tmp_path):
    shutil.copytree(obedient_folder, tmp_path / "my model")
    environment = make_environment(
        ARTIFACT_URI="file:///another", HOST="256.0.0.1", PORT=1, ALLOW_CODE="true", WORKERS=1
    )
    command = [*PROGRAM, "--model", "my model", "--host", "127.0.0.1", "--port", "0"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=file)
    try:
        with httpx.Client(base_url=wait_listening(process, log)) as client:
            wait_until(lambda: client.get("/readyz").status_code == httpx.codes.OK, process)
            assert client.post(PREDICT, json=instances("pid")).status_code == httpx.codes.OK
        process.terminate()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
