"""Where the browser is: wherever `install.sh` finds it, too."""

import shutil


def chromium() -> str:
    """The path of the `chromium` on `PATH`.

    Raises:
        AssertionError: There is none.
    """
    program = shutil.which("chromium")
    assert program, "apt-get install chromium"
    return program
