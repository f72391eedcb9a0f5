"""longtake: one 15-second video from a paid, slow, failure-prone gateway, as one durable Temporal workflow.

    from longtake import GenerateVideoInput, Store, VideoClient, connect

    client = VideoClient(await connect(), store=Store.open("s3://bucket/prefix"))
    await client.start("order-17", GenerateVideoInput(model="veo_3_1-fast-remix", prompt="…", prompt_extend="…"))
    result = await client.result("order-17")

`__all__` is the public API. A name is imported at its first use, because Temporal's SDK takes over a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "Attention",
    "Decision",
    "DecisionAction",
    "DecisionRejected",
    "Execution",
    "FailureDetails",
    "GenerateVideoInput",
    "GenerateVideoResult",
    "GenerationFailure",
    "GenerationNotFound",
    "GenerationStatus",
    "ImageInput",
    "ImageProblem",
    "InvalidKey",
    "InvalidRequest",
    "KeyInUse",
    "KeyProblem",
    "LedgerUnavailable",
    "MediaInfo",
    "NoWorker",
    "OnExtendFailed",
    "OnKeyRefused",
    "Paid",
    "PayloadUnreadable",
    "PendingStep",
    "Problem",
    "Settings",
    "SettingsProblem",
    "Snapshot",
    "Stage",
    "Store",
    "StoreProblem",
    "StoredVideo",
    "TaskRecord",
    "TaskState",
    "TemporalProblem",
    "TemporalUnavailable",
    "UncollectedExtension",
    "VideoClient",
    "VideoModel",
    "WrongLedger",
    "connect",
    "read_image_file",
    "store_image",
    "store_prompts",
]

if TYPE_CHECKING:
    from longtake.client import (
        DecisionRejected,
        Execution,
        GenerationFailure,
        GenerationNotFound,
        KeyInUse,
        NoWorker,
        PendingStep,
        Snapshot,
        TemporalUnavailable,
        VideoClient,
    )
    from longtake.models import (
        Attention,
        Decision,
        DecisionAction,
        FailureDetails,
        GenerateVideoInput,
        GenerateVideoResult,
        GenerationStatus,
        ImageInput,
        KeyProblem,
        MediaInfo,
        OnExtendFailed,
        OnKeyRefused,
        Paid,
        Problem,
        Stage,
        StoredVideo,
        TaskRecord,
        TaskState,
        UncollectedExtension,
    )
    from longtake.request.images import ImageProblem, read_image_file, store_image
    from longtake.request.prompts import store_prompts
    from longtake.request.rules import MODELS, InvalidRequest, VideoModel
    from longtake.settings import Settings, SettingsProblem
    from longtake.storage import Store, StoreProblem
    from longtake.submission.errors import LedgerUnavailable, WrongLedger
    from longtake.temporal.connection import TemporalProblem, connect
    from longtake.temporal.key_ring import PayloadUnreadable
    from longtake.temporal.names import InvalidKey
else:
    # Cheapest first: the search ends at the first module that has the name.
    _MODULES = (
        "temporal.names",
        "temporal.key_ring",
        "models",
        "request.rules",
        "settings",
        "storage",
        "request.images",
        "request.prompts",
        "submission.errors",
        "temporal.connection",
        "client",
    )

    def __getattr__(name: str) -> object:
        if name in __all__:
            for module in _MODULES:
                found = vars(import_module(f"longtake.{module}"))
                if name in found:
                    globals()[name] = found[name]
                    return found[name]
        raise AttributeError(f"module 'longtake' has no attribute {name!r}", name=name, obj=None)

    def __dir__() -> list[str]:
        return sorted([*__all__, "__version__"])
