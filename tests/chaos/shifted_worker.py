"""`python -m tests.chaos.shifted_worker SECONDS …`: `worker.py …` on a machine whose wall clock is wrong.

`time.time` and the `datetime.now` of our own modules are shifted, which is all that our code asks. Not shifted: clocks
that only count (monotonic, boot time), as on a real machine; and what is not Python of ours: the SDK's native core, the
object store's client (its signatures), TLS, the times of files. An NTP step in the middle of a process is not played.
"""

import datetime as dt
import runpy
import sys
import time
from typing import Any

import worker

_OURS = ("activities.", "longtake.")


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, dt.datetime)


def shift(seconds: float) -> None:
    """Let every module of ours that has been imported see another time."""
    by = dt.timedelta(seconds=seconds)
    true_time = time.time

    class Shifted(dt.datetime, metaclass=_Kind):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.now(tz) + by

    time.time = lambda: true_time() + seconds
    for name, module in list(sys.modules.items()):
        if name.startswith(_OURS) and getattr(module, "datetime", None) is dt.datetime:
            vars(module)["datetime"] = Shifted


if __name__ == "__main__":
    shift(float(sys.argv[1]))
    sys.argv = [str(worker.__file__), *sys.argv[2:]]
    runpy.run_path(str(worker.__file__), run_name="__main__")
