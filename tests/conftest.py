"""For all tests: settings of hypothesis, and how many tests of every promise passed.

`tests/torture/run.py` says what the counts are for.
"""

import os
from pathlib import Path

import hypothesis
import pytest
from torture import run as torture

# how long an example takes says something about the machine, not about the code
hypothesis.settings.register_profile(
    "tevq", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tevq")
OUTCOMES: dict[str, torture.Outcome] = {}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the web site, built once: one process has all its tests, see below.

    `TEVQ_SITE` names one that is built already.
    """
    if given := os.environ.get("TEVQ_SITE"):
        return Path(given)
    from tevq.site.__main__ import build

    if "PYTEST_XDIST_WORKER" in os.environ:  # fails where another process has built one, too
        (tmp_path_factory.getbasetemp().parent / "builds-the-site").mkdir()
    folder = tmp_path_factory.mktemp("web") / "site"
    build(folder, looked_at=24)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "promise(name): what the README promises and this test "
                            "proves; names are the keys of tests/torture/run.py: PROMISES")


@pytest.hookimpl(optionalhook=True)  # of xdist, which the check runs with; nbval does without it
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A file is tested by one process; all that look at the site by the one that builds it.

    Not by `--dist loadgroup`: xdist 3.8 writes its groups where pytest 9.2 does not look.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "site" if "test_site" in file else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("promise"):
            assert mark.args[0] in torture.PROMISES, f"{item.nodeid}: {mark.args[0]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when == "call" or report.outcome != "passed":
        for mark in item.iter_markers("promise"):
            measured = [str(value) for name, value in item.user_properties if name == "measured"]
            OUTCOMES.setdefault(mark.args[0], torture.Outcome()).add(
                report.outcome, report.duration, measured)
    return report


def pytest_sessionfinish() -> None:
    if target := os.environ.get(torture.TARGET):
        torture.write(OUTCOMES, Path(target))
