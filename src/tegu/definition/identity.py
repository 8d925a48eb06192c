"""os-release(5) of a system: who it says it is."""

from __future__ import annotations

from tegu.definition.models import System

__all__ = ["os_release"]


def os_release(system: System, *, codename: str | None, day: int) -> str:
    """Return the text of os-release(5).

    `codename` is the base's: third-party repositories are chosen by VERSION_CODENAME. `day` counts
    from the epoch; it makes BUILD_ID.
    """
    fields = {
        "PRETTY_NAME": system.pretty_name or f"{system.name} {system.version}",
        "NAME": system.pretty_name or system.name,
        "ID": system.name,
        "ID_LIKE": "debian",
        "VERSION_ID": system.version,
        "VERSION": system.version,
        "BUILD_ID": f"{system.version}-{day}",
        "IMAGE_ID": system.name,
        "IMAGE_VERSION": system.version,
        "HOME_URL": system.home_url,
        "SUPPORT_URL": system.support_url,
        "BUG_REPORT_URL": system.bug_url,
        "VERSION_CODENAME": codename or "",
    }
    return "".join(f'{k}="{v}"\n' for k, v in fields.items() if v)
