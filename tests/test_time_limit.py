"""CPU time limit of unit tests, with a copy of this folder's configuration and a lower limit."""

from pathlib import Path

TESTS = """
import time

import pytest

runs = []


def use_cpu(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_always_slow():
    use_cpu(0.2)


def test_slow_once(tmp_path):
    runs.append(tmp_path)
    use_cpu(0.2 if len(runs) == 1 else 0)
    (tmp_path / "file").touch(exist_ok=False)


@pytest.mark.slow
def test_integration():
    use_cpu(0.2)
"""


def test_unit_test_fails_if_it_is_slow_twice(pytester, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # which the configuration changes
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    conftest = Path(__file__).with_name("conftest.py").read_text()
    pytester.makeconftest(conftest + "\nUNIT_TEST_LIMIT = 0.1\n_slowdown = lambda: 1.0\n")
    pytester.makeini("[pytest]\nmarkers = slow\n    gpu\n")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["*test_always_slow*", "*this unit test took 0.* s and 0.* s of CPU time in two runs*"]
    )
