"""Every interleaving of the ledger's writers, deciders and closers, with a crash anywhere: see `scenarios.py`."""

from collections.abc import Iterator

import pytest

from tests.exploration.broken import DEFECTS, Defect
from tests.exploration.programs import frozen_world
from tests.exploration.scenarios import SCENARIOS, Scenario, explore
from tests.exploration.search import Violation

pytestmark = [pytest.mark.proof, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    with frozen_world():
        yield


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_interleaving_breaks_a_promise(scenario: Scenario, capsys: pytest.CaptureFixture[str]) -> None:
    tally = explore(scenario)
    with capsys.disabled():
        print(f"\n{scenario.name}: {tally}")  # noqa: T201 - the figures are what this is for
    assert tally.interleavings > 1000


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_broken_ledger_is_found(defect: Defect) -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == defect.scenario)
    with defect.applied() as make, pytest.raises(Violation):
        explore(scenario, make_ledger=make, overwrites=defect.overwrites)
