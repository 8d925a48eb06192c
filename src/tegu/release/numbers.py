"""Release numbers, YY.MM and YY.MM.N, and the dates that follow from them."""

from __future__ import annotations

import calendar
import re
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tegu.definition import shipped_directory
from tegu.errors import ReleaseError

__all__ = ["Calendar", "Number", "Support", "load_calendar", "support_of"]

_NUMBER = re.compile(r"(\d\d)\.(0[1-9]|1[0-2])(?:\.([1-9]\d{0,3}))?")


@dataclass(frozen=True, slots=True, order=True)
class Number:
    """A release: year and month of its series, and how many fixes came since."""

    year: int
    month: int
    fix: int = 0

    @classmethod
    def parse(cls, text: str) -> Number:
        """Return the number that `text` is; raises ReleaseError."""
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise ReleaseError(
                f"{text!r} is no release number", hint="YY.MM or YY.MM.N, such as 26.11 or 26.11.2"
            )
        return cls(int(match[1]), int(match[2]), int(match[3] or 0))

    @property
    def series(self) -> str:
        """The release that fixes belong to: 26.11 of 26.11.2."""
        return f"{self.year:02}.{self.month:02}"

    def __str__(self) -> str:
        return f"{self.series}.{self.fix}" if self.fix else self.series


@dataclass(frozen=True, slots=True)
class Support:
    """Until which day a release is looked after, the day included."""

    full: date
    security: date


@dataclass(frozen=True, slots=True)
class Calendar:
    """`distro/releases.toml`."""

    months: int
    first: Number
    full_months: int
    security_months: int
    long: dict[str, int]

    def due(self, number: Number) -> bool:
        """Whether the series of `number` is one of those that come by the cadence."""
        start = self.first.year * 12 + self.first.month
        here = number.year * 12 + number.month
        return here >= start and (here - start) % self.months == 0


def load_calendar(path: Path | None = None) -> Calendar:
    """Read the calendar at `path` (default: the one that this program ships)."""
    where = path or shipped_directory() / "releases.toml"
    try:
        raw = tomllib.loads(where.read_text())
        made = Calendar(
            months=_months(raw["cadence"]["months"]),
            first=Number.parse(raw["cadence"]["first"]),
            full_months=_months(raw["support"]["full_months"]),
            security_months=_months(raw["support"]["security_months"]),
            long={str(Number.parse(k)): _months(v) for k, v in raw.get("long", {}).items()},
        )
    except OSError as e:
        raise ReleaseError(f"{where}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, AttributeError) as e:
        raise ReleaseError(f"{where}: {e}") from e
    except KeyError as e:
        raise ReleaseError(f"{where}: {e} is missing") from e
    return made


def _months(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 240:
        raise TypeError(f"{value!r} is no number of months")
    return value


def support_of(number: Number, known: Calendar | None = None) -> Support:
    """Return until when the release is looked after; a fix is looked after as its series is."""
    plan = known or load_calendar()
    security = plan.long.get(number.series, plan.security_months)
    return Support(_last_day(number, plan.full_months), _last_day(number, security))


def _last_day(number: Number, months: int) -> date:
    index = (2000 + number.year) * 12 + number.month - 1 + months
    year, month = divmod(index, 12)
    return date(year, month + 1, calendar.monthrange(year, month + 1)[1])
