"""Typed keys of our search attributes, and their registration in a namespace."""

from typing import Final

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from longtake.settings import SettingsProblem
from longtake.temporal.connection import TemporalProblem
from longtake.temporal.names import SEARCH_ATTRIBUTES, WORKFLOW_ID_PREFIX

SEARCH_ATTRIBUTE_KEYS: Final = tuple(map(SearchAttributeKey.for_keyword, SEARCH_ATTRIBUTES))
VIDEO_MODEL, VIDEO_STAGE, VIDEO_OUTCOME, VIDEO_ATTENTION, VIDEO_PAID, GATEWAY_TASK_ID = SEARCH_ATTRIBUTE_KEYS

HOW_TO_CREATE_ATTRIBUTES: Final = "create each as a Keyword with the cluster's own tools (deploy/README.md)"
"""Advice where the cluster refuses `starter.py setup`."""
_NOT_ALLOWED: Final = (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED)
"""The cluster keeps its OperatorService from this client. UNAUTHENTICATED is different: the API key is useless."""


async def missing_search_attributes(client: Client) -> tuple[str, ...]:
    """The names that the namespace lacks. A workflow that upserts one of them would hang.

    Temporal Cloud and clusters with the default authorizer let only operators list search attributes. There this
    function tries each name in a list filter, which every client may do.

    Raises:
        TemporalProblem: The server refuses both.
    """
    try:
        known = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
    except RPCError as error:
        if error.status not in _NOT_ALLOWED:
            raise _cannot_inspect(client, error) from None
    else:
        return tuple(name for name in SEARCH_ATTRIBUTES if name not in known.custom_attributes)
    return tuple([name for name in SEARCH_ATTRIBUTES if not await _can_be_queried(client, name)])


async def _can_be_queried(client: Client, name: str) -> bool:
    try:
        # No workflow has this id, so the server counts none; it checks the attribute's name all the same.
        await client.count_workflows(f'WorkflowId = "{WORKFLOW_ID_PREFIX}" AND {name} IS NULL')
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT and name in error.message:
            return False
        raise _cannot_inspect(client, error) from None
    return True


def _cannot_inspect(client: Client, error: RPCError) -> TemporalProblem:
    return TemporalProblem(f"the namespace {client.namespace!r} cannot be inspected: {error.message}")


async def register_search_attributes(client: Client) -> tuple[str, ...]:
    """Register the missing search attributes. Calling it again changes nothing.

    Returns:
        The names that were missing.

    Raises:
        SettingsProblem: Some are missing, and the cluster does not let this client register them.
        TemporalProblem: The server does not say what is missing, or fails to register it.
    """
    missing = await missing_search_attributes(client)
    if missing:
        kinds = dict.fromkeys(missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
        try:
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(namespace=client.namespace, search_attributes=kinds)
            )
        except RPCError as error:
            if error.status in _NOT_ALLOWED:
                raise SettingsProblem(
                    f"the namespace {client.namespace!r} lacks the search attributes {', '.join(missing)}, and the "
                    f"cluster refuses to register them ({error.message}): {HOW_TO_CREATE_ATTRIBUTES}"
                ) from None
            if error.status is not RPCStatusCode.ALREADY_EXISTS:
                raise TemporalProblem(f"search attributes cannot be registered: {error.message}") from None
    return missing
