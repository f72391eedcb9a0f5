"""From flags to a request: what is offered today is no matter for a key that was submitted before."""

from datetime import timedelta
from pathlib import Path

import pytest

from cli.commands.request import build_request
from cli.output import CommandProblem, Exit
from longtake.request import rules
from longtake.storage import Store
from longtake.submission.errors import LedgerUnavailable
from longtake.submission.ledger import Submission, SubmissionLedger

MODEL = "veo_3_1-fast-remix"
FIELDS = {"model": MODEL, "prompt": "a paper boat", "prompt_extend": "it reaches the shore"}


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store.open(str(tmp_path))
    ledger = SubmissionLedger(store, longest_exchange=timedelta(0))
    await ledger.adopt("paid", Submission(digest="-", writer="us", model=MODEL), "task_1")
    # A copy: to delete an entry and restore it would change the order for the tests that come after.
    monkeypatch.setattr(rules, "MODELS", {name: model for name, model in rules.MODELS.items() if name != MODEL})
    return store


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_retired_model_is_refused_unless_the_ledger_knows_the_key(store: Store, dry_run: bool) -> None:
    request, _ = await build_request(FIELDS, [], store, dry_run=dry_run, key="paid")
    assert request.model == MODEL
    for key in ("fresh", None):
        with pytest.raises(CommandProblem) as refused:
            await build_request(FIELDS, [], store, dry_run=dry_run, key=key)
        assert (refused.value.kind, refused.value.code) == ("InvalidRequest", Exit.USAGE)
    with pytest.raises(CommandProblem) as refused:
        await build_request({**FIELDS, "prompt": ""}, [], store, dry_run=dry_run, key="paid")
    assert refused.value.details
    assert {problem.field for problem in refused.value.details.problems} == {"prompt", "model"}


async def test_a_ledger_that_cannot_be_read_is_no_wrong_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> bool:
        raise LedgerUnavailable("the store is away")

    monkeypatch.setattr(SubmissionLedger, "is_untouched", away)
    with pytest.raises(LedgerUnavailable):
        await build_request(FIELDS, [], store, dry_run=False, key="paid")


@pytest.mark.parametrize("image", ["ftp://host/a.png", "file:///a.png", "https://"])
async def test_a_url_that_no_gateway_can_read_is_no_missing_file(store: Store, image: str) -> None:
    with pytest.raises(CommandProblem) as refused:
        await build_request(FIELDS, [image], store, dry_run=True, key="paid")
    assert refused.value.details
    (rule,) = [problem.rule for problem in refused.value.details.problems if problem.field == "images[0]"]
    assert "https://" in rule


async def test_an_http_url_goes_to_the_gateway_as_it_is(store: Store) -> None:
    fields = {**FIELDS, "model": "veo_3_1-remix"}
    request, _ = await build_request(fields, ["HTTP://host/a.png"], store, dry_run=False)
    assert [image.uri.lower() for image in request.images] == ["http://host/a.png"]
