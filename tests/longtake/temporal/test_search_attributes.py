"""Which search attributes a namespace lacks, also where the cluster lets nobody list them.

With a real server: tests/end_to_end/test_e2e_setup.py and test_e2e_tls.py.
"""

from collections.abc import Collection
from typing import cast

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListSearchAttributesRequest,
    ListSearchAttributesResponse,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from longtake.settings import SettingsProblem
from longtake.temporal.connection import TemporalProblem
from longtake.temporal.names import SEARCH_ATTRIBUTES
from longtake.temporal.search_attributes import (
    HOW_TO_CREATE_ATTRIBUTES,
    missing_search_attributes,
    register_search_attributes,
)

ALL = SEARCH_ATTRIBUTES
KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
NOT_FOR_US = [RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED]
NOT_NOW = [RPCStatusCode.UNAVAILABLE, RPCStatusCode.UNAUTHENTICATED, RPCStatusCode.NOT_FOUND]


def refused(status: RPCStatusCode, message: str = "Request unauthorized.") -> RPCError:
    return RPCError(message, status, b"")


class Cluster:
    """A namespace with these search attributes, and what its cluster refuses; stands in for a client of it."""

    namespace = "video"

    def __init__(
        self,
        has: Collection[str],
        *,
        listing: RPCError | None = None,
        adding: RPCError | None = None,
        asking: RPCError | None = None,
    ) -> None:
        self._has = has
        self._listing, self._adding, self._asking = listing, adding, asking
        self.operator_service = self
        self.added: dict[str, IndexedValueType.ValueType] = {}
        self.queries = 0

    def client(self) -> Client:
        return cast("Client", self)

    async def list_search_attributes(self, request: ListSearchAttributesRequest) -> ListSearchAttributesResponse:
        assert request.namespace == self.namespace
        if self._listing:
            raise self._listing
        return ListSearchAttributesResponse(custom_attributes=dict.fromkeys(self._has, KEYWORD))

    async def add_search_attributes(self, request: AddSearchAttributesRequest) -> None:
        if self._adding:
            raise self._adding
        self.added.update(request.search_attributes)

    async def count_workflows(self, query: str) -> None:
        self.queries += 1
        if self._asking:
            raise self._asking
        for name in ALL:
            if name in query and name not in self._has:  # in the words of server 1.32
                said = f"invalid query: invalid search attribute: {name}"
                raise refused(RPCStatusCode.INVALID_ARGUMENT, said)


@pytest.mark.parametrize("has", [ALL, ALL[:2], ()])
async def test_a_cluster_that_lists_them_is_asked_once(has: tuple[str, ...]) -> None:
    cluster = Cluster(has)
    assert await missing_search_attributes(cluster.client()) == ALL[len(has) :]
    assert cluster.queries == 0


@pytest.mark.parametrize("has", [ALL, ALL[:2], ()])
@pytest.mark.parametrize("status", NOT_FOR_US)
async def test_where_listing_is_for_operators_each_is_asked_about(has: tuple[str, ...], status: RPCStatusCode) -> None:
    assert await missing_search_attributes(Cluster(has, listing=refused(status)).client()) == ALL[len(has) :]


@pytest.mark.parametrize("status", NOT_NOW)
async def test_any_other_answer_says_nothing_about_them(status: RPCStatusCode) -> None:
    cluster = Cluster(ALL, listing=refused(status, "not now"))
    with pytest.raises(TemporalProblem, match="'video' cannot be inspected: not now"):
        await missing_search_attributes(cluster.client())
    assert cluster.queries == 0


@pytest.mark.parametrize("status", [*NOT_FOR_US, *NOT_NOW, RPCStatusCode.INVALID_ARGUMENT])
async def test_a_query_that_fails_for_another_reason_is_no_sign_that_they_are_missing(status: RPCStatusCode) -> None:
    asking = refused(status, "invalid query: no reason that names one")
    cluster = Cluster(ALL, listing=refused(RPCStatusCode.PERMISSION_DENIED), asking=asking)
    with pytest.raises(TemporalProblem, match="cannot be inspected: invalid query"):
        await missing_search_attributes(cluster.client())


@pytest.mark.parametrize("status", NOT_FOR_US)
async def test_nothing_is_registered_where_nothing_is_missing(status: RPCStatusCode) -> None:
    cluster = Cluster(ALL, listing=refused(status), adding=refused(status))
    assert await register_search_attributes(cluster.client()) == ()


async def test_what_is_missing_is_registered_where_only_listing_is_refused() -> None:
    cluster = Cluster(ALL[:2], listing=refused(RPCStatusCode.PERMISSION_DENIED))
    assert await register_search_attributes(cluster.client()) == ALL[2:]
    assert cluster.added == dict.fromkeys(ALL[2:], KEYWORD)


@pytest.mark.parametrize("status", NOT_FOR_US)
async def test_refused_registration_names_what_is_missing_and_what_to_do(status: RPCStatusCode) -> None:
    cluster = Cluster(ALL[:2], listing=refused(status), adding=refused(status))
    with pytest.raises(SettingsProblem) as told:
        await register_search_attributes(cluster.client())
    assert [name for name in ALL if name in str(told.value)] == list(ALL[2:])
    assert "Request unauthorized." in str(told.value)
    assert HOW_TO_CREATE_ATTRIBUTES in str(told.value)


async def test_registration_that_fails_says_why_unless_somebody_else_was_faster() -> None:
    faster = Cluster((), adding=refused(RPCStatusCode.ALREADY_EXISTS))
    assert await register_search_attributes(faster.client()) == ALL
    with pytest.raises(TemporalProblem, match="cannot be registered: no disk"):
        await register_search_attributes(Cluster((), adding=refused(RPCStatusCode.INTERNAL, "no disk")).client())
