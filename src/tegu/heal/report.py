"""A diagnosis as a page: findings with evidence as bars against their thresholds, no script."""

from __future__ import annotations

import time
from html import escape

from tegu.heal.doctor import Diagnosis, penalties, score
from tegu.heal.finding import Evidence, Finding

__all__ = ["page"]

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1c1e21;background:#fff}
h1{font-size:1.5rem}article{border-left:4px solid #888;padding:.2rem 1rem;margin:1.5rem 0}
.critical{border-color:#c62828}.warning{border-color:#ef8e00}.notice{border-color:#5b7fa6}
h2{font-size:1.1rem;margin:.3rem 0}table{border-collapse:collapse}td,th{text-align:left;
padding:.15rem 1rem .15rem 0;vertical-align:top}th{font-weight:600}
pre{font-size:12px;background:#f4f4f5;padding:.5rem;overflow:auto}
svg text{font:11px system-ui,sans-serif}.small{color:#666;font-size:.85rem}
"""


def page(diagnosis: Diagnosis) -> str:
    """Return the whole page as HTML."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(diagnosis.time))
    found = "".join(_article(f) for f in diagnosis.findings) or "<p>Nothing is wrong.</p>"
    parts = "".join(
        f"<tr><td>{escape(k)}</td><td>-{v:g}</td></tr>"
        for k, v in penalties(diagnosis.findings).items()
    )
    failed = "".join(
        f"<p class=small>The rule {escape(n)} failed: {escape(w)}</p>"
        for n, w in diagnosis.failures.items()
    )
    host = escape(diagnosis.host)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{host}: diagnosis</title>
<style>{_STYLE}</style></head><body>
<h1>{host}: health {score(diagnosis.findings)} of 100</h1>
<p class=small>{when}, kernel {escape(diagnosis.kernel)}, looked for {diagnosis.seconds:.1f} s
with {len(diagnosis.rules)} rules</p>
{f"<table><tr><th>what the score lacks</th><th></th></tr>{parts}</table>" if parts else ""}
{found}{failed}</body></html>
"""


def _article(finding: Finding) -> str:
    rows = [("culprit", f"{finding.culprit} ({finding.sure:.0%} sure)" if finding.culprit else "")]
    rows.append(("victims", ", ".join(str(v) for v in finding.victims[:8])))
    rows.append(("remedy", f"tegu heal --finding '{finding.key}'" if finding.remedy else ""))
    rows.append(("advice", finding.advice))
    table = "".join(f"<tr><th>{n}</th><td>{escape(v)}</td></tr>" for n, v in rows if v)
    stacks = "".join(f"<pre>{escape(chr(10).join(s))}</pre>" for s in finding.stacks)
    evidence = "".join(
        f"<tr><th></th><td>{escape(str(e))} {_bar(e)}</td></tr>" for e in finding.evidence
    )
    return (
        f"<article class={finding.severity}><h2>{escape(finding.title)}</h2>"
        f"<table>{table}{evidence}</table>{stacks}</article>"
    )


def _bar(evidence: Evidence) -> str:
    """Draw a value against its threshold; nothing where there is none."""
    value, limit = evidence.value, evidence.limit
    if isinstance(value, str) or not limit or limit <= 0 or value < 0:
        return ""
    most = max(float(value), limit) * 1.1
    width, mark = 200 * float(value) / most, 200 * limit / most
    return (
        '<svg width="204" height="12" role="img" aria-label="value against threshold">'
        '<rect width="200" height="10" y="1" fill="#eee"/>'
        f'<rect width="{width:.1f}" height="10" y="1" fill="#5b7fa6"/>'
        f'<line x1="{mark:.1f}" x2="{mark:.1f}" y1="0" y2="12" stroke="#c62828"'
        ' stroke-width="2"/></svg>'
    )
