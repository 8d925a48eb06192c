"""Maintainer scripts that start hundreds of programs to compare lines, doing so in the shell.

A passage is exchanged only where a script holds it letter by letter, and only while packages are
configured: the scripts in the image are the packages' own. What the passage does stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["Shortcut", "scripts", "shortened"]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A passage of a maintainer script, and what does the same with fewer processes."""

    slow: str
    quick: str


# A line is one of the lines of a variable. The patterns are quoted: compared as they are.
_NEWLINE = "nl='\n'"
_IS_LINE = 'case "$nl{variable}$nl" in *"$nl$crt$nl"*) true ;; *) false ;; esac'


# Two greps for each of 140 certificates; one for each of 500 locales, through a file of as many.
_SHORTCUTS: Mapping[str, tuple[Shortcut, ...]] = MappingProxyType(
    {
        "ca-certificates.config": (
            Shortcut(
                ' if (echo "$CERTS_DISABLED" | grep -F -q -x "$crt") > /dev/null 2>&1; then',
                f" {_NEWLINE}\n if {_IS_LINE.format(variable='$CERTS_DISABLED')}; then",
            ),
            Shortcut(
                ' elif (echo "$CERTS_TRUST" | grep -F -q -x "$crt") > /dev/null 2>&1; then',
                f" elif {_IS_LINE.format(variable='$CERTS_TRUST')}; then",
            ),
        ),
        "locales.postinst": (
            Shortcut(
                """\
        echo "$SUPPORTED_LOCALES" | while read locale ; do
           if ! grep -q "^[# ]*$locale *\\$" $LG; then \n\
             echo "# $locale" >> $LG
           fi
        done
""",
                f"""\
        {_NEWLINE}
        there="$nl$(sed -e 's/^[# ]*//' -e 's/ *$//' $LG)$nl"
        echo "$SUPPORTED_LOCALES" | while read locale ; do
           case "$there" in
             *"$nl$locale$nl"*) ;;
             *) echo "# $locale"; there="$there$locale$nl" ;;
           esac
        done >> $LG
""",
            ),
        ),
    }
)


def shortened(name: str, text: str) -> str | None:
    """Return the script `name` (as in dpkg's info directory) with its shortcuts; None if none."""
    known = _SHORTCUTS.get(name, ())
    if not known or not all(shortcut.slow in text for shortcut in known):
        return None
    for shortcut in known:
        text = text.replace(shortcut.slow, shortcut.quick)
    return text


def scripts() -> tuple[str, ...]:
    """Return the names of the scripts that have shortcuts."""
    return tuple(_SHORTCUTS)
