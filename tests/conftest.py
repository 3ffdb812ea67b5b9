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
    """The folder of the web site, built once: all its tests are one group, see below.

    `TEVQ_SITE` names one that is built already.
    """
    if given := os.environ.get("TEVQ_SITE"):
        return Path(given)
    from tevq.site.__main__ import build

    folder = tmp_path_factory.mktemp("web") / "site"
    build(folder, looked_at=24)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "promise(name): what the README promises and this test "
                            "proves; names are the keys of tests/torture/run.py: PROMISES")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # a file is tested by one process; all that look at the site by the one that builds it
        group = "site" if "site" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
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
