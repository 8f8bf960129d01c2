"""How a bench ends."""

import pytest

from bench import program
from bench.server.processes import BenchError
from cluster.errors import ClusterError


@pytest.mark.parametrize(
    "error", [BenchError("broken"), ExceptionGroup("tasks", [ExceptionGroup("tasks", [ClusterError("broken")])])]
)
def test_a_failure_is_told_in_one_line(monkeypatch, capsys, error):
    def fail(_):
        raise error

    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    monkeypatch.setattr(program.typer, "run", fail)
    with pytest.raises(SystemExit) as stopped:
        program.run_program(lambda: None)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.endswith("failed: broken\n")
