"""A workflow that imports our modules without passing them through: a second copy of each type in the sandbox."""

from temporalio import workflow

from longtake.models import GenerationPolicy


@workflow.defn
class CarelessWorkflow:
    @workflow.run
    async def run(self) -> str:
        return repr(GenerationPolicy())
