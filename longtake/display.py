"""What people are shown of texts that others wrote: one line, nothing invisible, and nothing that acts.

Texts are kept as they came. They are made harmless here, where they are shown: in a terminal, on a page in Markdown, in
a JSON document on a screen. The log has the same rule (`longtake.observability.logs`).
"""

import json
import re
import shlex
from collections.abc import Mapping

from longtake.models import Paid

_AFTER_CANCELLING: Mapping[str, str] = {
    Paid.NO: "nothing was paid",
    Paid.YES: "nobody waits any more; it was paid, and the gateway makes it all the same",
    Paid.UNKNOWN: "nobody waits any more; it may have been submitted, and may still be made, and cost",
}
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&!$])")
_BACKTICKS = re.compile(r"`+")


def after_cancelling(paid: str | None) -> str:
    """What a cancelled generation comes to, by what is known about money."""
    return _AFTER_CANCELLING.get(paid or "", _AFTER_CANCELLING[Paid.UNKNOWN])


def line(text: object) -> str:
    """One line of printable characters, for a terminal; controls, bidi marks and ends of lines as JSON escapes them.

    A line's end in a text would begin a line that we never wrote, and an escape sequence could wipe ours out.
    """
    return escaped(str(text))


def lines(text: str) -> str:
    """The same for a text whose ends of lines are our own."""
    return "\n".join(map(line, text.split("\n")))


def escaped(text: str) -> str:
    """What some reader may take for a line's end, or a terminal for a command, as JSON writes it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def json_document(document: object) -> str:
    """A JSON document of several lines, each of them ours."""
    return "\n".join(map(escaped, json.dumps(document, ensure_ascii=False, indent=2).split("\n")))


def prose(text: object) -> str:
    """A text as Markdown shows it, and not as Markdown reads it."""
    # A link that a text names is shown, and is none to click on.
    return _MARKDOWN.sub(r"\\\1", line(text)).replace("://", r"\://")


def code(text: object) -> str:
    """A text in Markdown's letters for code, whatever backticks it holds."""
    shown = line(text)
    if "`" not in shown:
        return f"`{shown}`"
    fence = "`" * (1 + max(map(len, _BACKTICKS.findall(shown))))
    return f"{fence} {shown} {fence}"


def command(*words: str) -> str:
    """A command that can be copied to a shell: no word of it is more than a word."""
    return line(shlex.join(words))
