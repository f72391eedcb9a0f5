"""Workflows that old histories cannot follow, and one that the sandbox must not take: controls for the tests."""

from typing import Any

from temporalio import workflow
from temporalio.common import RawValue

with workflow.unsafe.imports_passed_through():
    from datetime import timedelta

    from longtake.temporal.search_attributes import VIDEO_STAGE
    from workflows.generate_video import GenerateVideoWorkflow


@workflow.defn(name="GenerateVideo")
class WithAnotherTimer(GenerateVideoWorkflow):
    @workflow.run
    async def run(self, *given: RawValue) -> Any:
        await workflow.sleep(timedelta(seconds=1))
        return await super().run(*given)


@workflow.defn(name="GenerateVideo")
class WithAnotherCommandAtTheEnd(GenerateVideoWorkflow):
    @workflow.run
    async def run(self, *given: RawValue) -> Any:
        try:
            return await super().run(*given)
        finally:
            workflow.upsert_search_attributes([VIDEO_STAGE.value_set("preparing")])


@workflow.defn(name="GenerateVideo")
class WithAnotherEnd(GenerateVideoWorkflow):
    @workflow.run
    async def run(self, *given: RawValue) -> Any:
        await workflow.wait_condition(lambda: False)
