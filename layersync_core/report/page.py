"""The report as one HTML file that can be sent to others: no scripts, and nothing to load."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from html import escape as plain

from layersync_core import __version__
from layersync_core.markup import document, escape
from layersync_core.report import chart
from layersync_core.report.contents import Point, Report, Series, metric_rank
from layersync_core.report.facts import (
    Translator,
    command_of,
    facts_of,
    settings_of_run,
    versions_of,
    was_resumed,
)

CHARTS, ROWS = 16, 60
"""How many metrics are drawn, and how many are in the table."""
_LATEST = 1e11  # seconds since 1970

# A style sheet, since attributes alone do not support dark mode or phones; where a policy blocks it, the page is plain
# but complete.
STYLE = """
:root { color-scheme: light dark; --quiet: #57606a; --line: #d0d7de; --raised: #f6f8fa; --a: #0072b2; --b: #b84a00; }
@media (prefers-color-scheme: dark) {
  :root { --quiet: #9198a1; --line: #3d444d; --raised: #161b22; --a: #56b4e9; --b: #ff8c42; }
  body { background: #0d1117; color: #e6edf3; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 980px; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font: 600 .95rem/1.4 ui-monospace, monospace; margin: 1rem 0 .2rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .15rem 1rem; margin: .5rem 0; }
dt, figcaption, .quiet { color: var(--quiet); }
dd { margin: 0; }
figure { margin: 0 0 1rem; }
img, svg { max-width: 100%; height: auto; vertical-align: middle; }
.wide { overflow-x: auto; }
:focus-visible { outline: 2px solid var(--a); }
table { border: 0; border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; padding: .25rem .7rem; border: 0 solid var(--line); border-bottom-width: 1px; }
td { white-space: nowrap; }
pre { background: var(--raised); border: 1px solid var(--line); padding: .6rem; white-space: pre-wrap; }
.line0 { stroke: var(--a); } .line1 { stroke: var(--b); } .dot0 { fill: var(--a); } .dot1 { fill: var(--b); }
@media (min-width: 800px) { .charts { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.5rem; } }
@media (max-width: 500px) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; form-action 'none'"
"""What browsers allow in the file: only this style, and embedded pictures, which are data: URLs."""


def render_report(report: Report, gettext: Translator = str, language: str = "en") -> str:
    """Return the file's text.

    Args:
        report: What is known about the run.
        gettext: Translates a text into the reader's language.
        language: That language, as in ``lang``.
    """
    _ = gettext
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><style>{STYLE}</style>'
    )
    written = _("Written by layersync %(version)s") % {"version": __version__}
    parts = [
        f"<h1>LayerSync · {escape(report.name)}</h1>",
        _summary(report, _),
        *(f"<p>{escape(note)}</p>" for note in report.notes),
        _section(_("What was trained"), _list(_facts(report, _))),
        _section(_("Comparison"), _comparison(report, _)),
        _section(_("Curves"), _curves(report, _)),
        _section(_("Figures"), _figures(report, _)),
        _section(_("Samples"), _pictures(report, _)),
        _section(_("Settings given"), _list(settings_of_run(report.record, "given"))),
        _section(_("Settings in force"), _folded(_list(settings_of_run(report.record, "config")), _("Show them"))),
        _section(_("To repeat the run"), _command(report, _)),
        _section(_("Versions"), _list(versions_of(report.record))),
        f'<p class="quiet">{plain(written)}, {_moment(time.time())}</p>',
    ]
    return document(
        f"{report.name} · LayerSync", "\n".join(["<main>", *filter(None, parts), "</main>"]), language, head
    )


def _summary(report: Report, _: Translator) -> str:
    said = [f"<strong>{plain(report.state)}</strong>"]
    if report.step is not None and report.total_steps:
        said.append(plain(_("step %(step)s of %(total)s") % {"step": report.step, "total": report.total_steps}))
    elif report.step is not None:
        said.append(plain(_step(report.step, _)))
    if report.began is not None:
        said.append(plain(_("began %(when)s") % {"when": _moment(report.began)}))
    if report.seconds is not None:
        said.append(plain(_("took %(time)s") % {"time": _duration(report.seconds, _)}))
    return f"<p>{' · '.join(said)}</p>"


def _facts(report: Report, _: Translator) -> list[tuple[str, str]]:
    several = len(report.arms) > 1
    return facts_of({key: value for key, value in report.record.items() if key != "arm" or not several}, _)


def _curves(report: Report, _: Translator) -> str:
    # Texts are outside of f-strings, so that the extraction for translation finds them.
    names, steps = _metrics(report), _("optimiser step")
    drawn = []
    for name in names[:CHARTS]:
        lines = {arm.name: arm.curves[name] for arm in report.arms if name in arm.curves}
        numbers = [number for number, arm in enumerate(report.arms) if name in arm.curves]
        points: list[Sequence[Point]] = [() for _arm in report.arms]
        for number, line in zip(numbers, lines.values(), strict=True):
            points[number] = line.thinned()
        captions = [
            (f"{chart.sample(number)} {escape(arm)}: " if arm else "") + _told(line, _)
            for number, (arm, line) in zip(numbers, lines.items(), strict=True)
        ]
        label = _("Curve of %(metric)s over optimiser steps") % {"metric": name}
        drawn.append(
            f"<figure><h3>{escape(name)}</h3>{chart.chart(label, points, steps)}"
            f"<figcaption>{'<br>'.join(captions)}</figcaption></figure>"
        )
    if not drawn:
        return ""
    told = _("Metrics not drawn: %(count)d") % {"count": len(names) - CHARTS}
    more = f'<p class="quiet">{plain(told)}</p>' if len(names) > CHARTS else ""
    return f'<div class="charts">{"".join(drawn)}</div>{more}'


def _told(line: Series, _: Translator) -> str:
    found = line.summary()
    if found is None:
        return plain(_("no finite value"))
    words = {"last": f"{found.last.value:.4g}", "least": f"{found.least.value:.4g}", "step": found.least.step}
    return plain(_("last %(last)s, lowest %(least)s at step %(step)s") % words)


def _figures(report: Report, _: Translator) -> str:
    several = len(report.arms) > 1
    heads = [_("Metric"), *([_("Arm")] if several else []), _("First"), _("Last"), _("Lowest"), _("Highest")]
    rows = []
    for name in _metrics(report)[:ROWS]:
        for arm in report.arms:
            found = arm.curves[name].summary() if name in arm.curves else None
            if found is None:
                continue
            cells = [f"{point.value:.4g} ({_step(point.step, _)})" for point in found]
            rows.append([name, *([arm.name] if several else []), *cells])
    metrics = report.record.get("metrics")
    known = {name for arm in report.arms for name in arm.curves}
    if isinstance(metrics, dict) and not several:
        for name, value in [*metrics.items()][:ROWS]:
            if name not in known and isinstance(value, float):
                rows.append([name, "", f"{value:.4g}", "", ""])
    return _table(heads, rows) if rows else ""


def _comparison(report: Report, _: Translator) -> str:
    arms, rows, note = (report.comparison.get(key) for key in ("arms", "rows", "note"))
    if not isinstance(arms, list) or not isinstance(rows, list):
        return ""
    cells = [[_(row[0]) if isinstance(row[0], str) else "", *row[1:]] for row in rows if isinstance(row, list) and row]
    told = f"<p>{escape(_(note))}</p>" if isinstance(note, str) else ""
    return _table([_("Metric"), *arms], cells[:ROWS]) + told


def _pictures(report: Report, _: Translator) -> str:
    drawn = []
    for picture in report.pictures:
        name = picture.title
        if picture.step is not None:
            name = f"{_step(picture.step, _)} · {name}"
        label = _("Samples: %(name)s") % {"name": name}
        source = f"data:{escape(picture.kind)};base64,{base64.b64encode(picture.data).decode()}"
        drawn.append(
            f'<figure><img src="{source}" alt="{escape(label)}"><figcaption>{escape(name)}</figcaption></figure>'
        )
    if report.left_out:
        told = _("Pictures left out: %(count)d") % {"count": report.left_out}
        drawn.append(f'<p class="quiet">{plain(told)}</p>')
    return "".join(drawn)


def _command(report: Report, _: Translator) -> str:
    line = command_of(report.record)
    if not line:
        return ""
    told = [_("It writes into ./layersync-output, unless --output_dir names another folder.")]
    if was_resumed(report.record):
        told.append(_("The run was resumed: settings that changed on the way are those of its last part."))
    return f"<pre>{escape(line)}</pre><p>{plain(' '.join(told))}</p>"


def _metrics(report: Report) -> list[str]:
    return sorted({name for arm in report.arms for name, line in arm.curves.items() if line.points}, key=metric_rank)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{plain(title)}</h2>\n{content}\n</section>" if content else ""


def _folded(content: str, label: str) -> str:
    return f"<details><summary>{plain(label)}</summary>{content}</details>" if content else ""


def _list(rows: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in rows)
    return f"<dl>{items}</dl>" if items else ""


def _table(heads: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(f"<tr>{_row(row)}</tr>" for row in rows)
    table = f'<table border="1"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide" tabindex="0">{table}</div>'  # so that the keyboard scrolls it


def _row(row: Sequence[object]) -> str:
    return f'<th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])


def _step(step: int, _: Translator) -> str:
    return _("step %(step)s") % {"step": step}


def _moment(seconds: float) -> str:
    """Return a local time with its UTC offset, since the reader may be elsewhere."""
    if not 0 <= seconds < _LATEST:  # a record may say anything
        return "?"
    return time.strftime("%Y-%m-%d %H:%M %z", time.localtime(seconds))


def _duration(seconds: float, _: Translator) -> str:
    whole = int(min(max(0.0, seconds), _LATEST))
    if whole < 60:
        return _("%(seconds)d s") % {"seconds": whole}
    if whole < 3600:
        return _("%(minutes)d min %(seconds)d s") % {"minutes": whole // 60, "seconds": whole % 60}
    return _("%(hours)d h %(minutes)d min") % {"hours": whole // 3600, "minutes": whole % 3600 // 60}
