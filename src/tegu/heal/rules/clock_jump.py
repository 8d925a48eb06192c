"""The system's clock and the hardware's differ, and no time daemon stands behind the first."""

from __future__ import annotations

from collections.abc import Iterator

from tegu.heal.finding import Evidence, Finding, Subject
from tegu.heal.look import Look
from tegu.heal.rule import Rule

_FAR = 5.0  # seconds


def check(look: Look) -> Iterator[Finding]:
    clock = look.clock
    ahead = clock.hardware_ahead
    steps = (look.after.wall - look.before.wall) - (look.after.at - look.before.at)
    wrong = ahead is not None and abs(ahead) > _FAR and not clock.synchronised
    if not wrong and abs(steps) < _FAR:
        return
    off = -ahead if ahead is not None and wrong else steps
    # A machine whose hardware clock keeps local time is off by whole quarters of an hour, too; it
    # is then set by a daemon, and counts as synchronised.
    yield Finding(
        rule="clock_jump",
        title=f"the clock is {abs(off):.0f} s {'ahead' if off > 0 else 'behind'}",
        severity="critical" if abs(off) > 60 else "warning",
        sure=0.85 if wrong else 0.7,
        culprit=Subject("clock", "realtime"),
        victims=(Subject("machine", "timers, certificates, logs"),),
        evidence=(
            Evidence("from the hardware clock", round(off, 1), "s", _FAR),
            Evidence("stepped while we looked", round(steps, 2), "s"),
            Evidence("kernel says", "synchronised" if clock.synchronised else "not synchronised"),
        ),
        remedy="set-clock" if wrong else "",
        target={},
        advice="chronyc makestep when there is a reference; hwclock --hctosys when there is none",
    )


RULE = Rule(
    "clock_jump",
    "Has the clock jumped?",
    ("/sys/class/rtc/rtc0/since_epoch", "adjtimex(2)"),
    "rtc(4); adjtimex(2), STA_UNSYNC",
    check,
)
