"""Files that only their owner can read: prompts, signed links, histories and videos lie in them."""

import os

OTHERS = 0o007


def keep_files_private() -> None:
    """Give nobody else on this machine what this process writes; for a program's very beginning.

    A umask that already shuts others out stays: an operator has chosen it to share with a group
    (docs/access.md).
    """
    given = os.umask(0o077)
    if given & OTHERS == OTHERS:
        os.umask(given)
