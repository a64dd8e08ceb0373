"""quality.html: data quality of a prepared log on one page, with row accounting, charts by month and indicators."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from clv.data.events import TYPES
from clv.data.prepare.profile import Stats, top_share
from clv.data.spec.models import DatasetSpec

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}
h1{font-size:1.6rem;margin-bottom:0}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d8dee5}
table{border-collapse:collapse;width:100%}td,th{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #eceff3}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.note{color:#5a6878}
svg{width:100%;height:auto}rect{fill:#3d7ab5}text{font-size:11px;fill:#5a6878}.warn{color:#9a4b00}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.8rem}dt{color:#5a6878}
dd{margin:0;font-size:1.3rem;font-variant-numeric:tabular-nums}
"""


def page(spec: DatasetSpec, manifest: dict[str, Any], stats: Stats) -> str:
    """Returns the page as HTML that needs no other file and no network."""
    title = f"Data quality: {spec.name}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n<p class=note>{escape(spec.description)}</p>\n"
        + _summary(spec, manifest, stats)
        + _findings(spec, manifest, stats)
        + _accounting(manifest)
        + _months(spec, stats)
        + _customers(spec, stats)
        + _indicators(spec, stats)
        + _sources(spec, manifest)
        + "</body></html>\n"
    )


def _summary(spec: DatasetSpec, manifest: dict[str, Any], stats: Stats) -> str:
    facts = {
        "customers": f"{stats['customers']:,}",
        "of them buyers": f"{stats['buyers']:,}",
        "orders": f"{stats['orders']:,}",
        "events": f"{stats['lines']:,}",
        "items": f"{manifest['num_items']:,}",
        "first event": str(manifest["first_time"])[:10],
        "last event": str(manifest["last_time"])[:10],
    }
    if spec.value != "none":
        facts[f"purchases, {spec.currency}"] = f"{stats['amount']:,.0f}"
        facts[f"returned, {spec.currency}"] = f"{stats['returned']:,.0f}"
    return (
        "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()) + "</dl>\n"
    )


def _findings(spec: DatasetSpec, manifest: dict[str, Any], stats: Stats) -> str:
    accounting = manifest["row_accounting"]["events"]
    rejected = sum(accounting["rejected"].values())
    share = rejected / max(accounting["read"], 1)
    lines = [
        f"{rejected:,} of {accounting['read']:,} event rows ({share:.1%}) were rejected; "
        f"the dataset allows {spec.max_rejected_share:.0%}."
    ]
    if stats["buyers"]:
        lines.append(
            f"{stats['one_time_buyers'] / stats['buyers']:.0%} of the buyers bought once; "
            f"a buyer has {stats['orders'] / stats['buyers']:.1f} orders on average."
        )
    top_tenth = top_share(stats, 0.1)
    if spec.value != "none" and not math.isnan(top_tenth):
        lines.append(f"The best tenth of the buyers makes {top_tenth:.0%} of all purchases (amounts before returns).")
    if stats["filled_lines"]:
        lines.append(
            f"{stats['filled_lines']:,} amounts were missing and filled by the dataset's rule; they are flagged."
        )
    first, last = manifest["first_time"], manifest["last_time"]
    if first and last:
        days = (stats["last_us"] - stats["first_us"]) / 86_400e6
        lines.append(
            f"The log covers {days:,.0f} days. What happened before its first day is unknown, "
            "so early customers may be older than they look."
        )
        longest = max(spec.horizons_days)
        if days < 2 * longest:
            lines.append(
                f"The longest horizon is {longest} days: a log shorter than twice that is short for training on it."
            )
    if stats["largest_history"] > 10_000:
        lines.append(
            f"One customer has {stats['largest_history']:,} events: is it a reseller, a till or a test account?"
        )
    return "<h2>What to know</h2>\n<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>\n"


def _accounting(manifest: dict[str, Any]) -> str:
    note = "Every row read was accepted, or written to rejects/ with a reason."
    out = [f"<h2>Row accounting</h2>\n<p class=note>{note}</p>\n"]
    for table, accounting in manifest["row_accounting"].items():
        rows = [("read", accounting["read"], "")]
        rows += [(f"rejected: {reason}", -count, "") for reason, count in accounting["rejected"].items()]
        rows += [("accepted", accounting["accepted"], "")]
        rows += [(f"note: {notice}", count, " class=warn") for notice, count in accounting["notices"].items()]
        body = "".join(f"<tr{c}><td>{escape(name)}</td><td class=n>{count:,}</td></tr>" for name, count, c in rows)
        out.append(f"<h3>{escape(table)}</h3><table>{body}</table>\n")
    return "".join(out)


def _months(spec: DatasetSpec, stats: Stats) -> str:
    charts = [("Active customers per month", stats["active_by_month"]), ("Orders per month", stats["orders_by_month"])]
    if spec.value != "none":
        charts.append((f"Purchases per month, {spec.currency}", stats["amount_by_month"]))
    charts.append(("Customers first seen in the month", stats["first_seen_by_month"]))
    return (
        "<h2>Over time</h2>\n<p class=note>Months of the shop's clock; the first and last may be incomplete.</p>\n"
        + "".join(f"<h3>{escape(title)}</h3>{bars(values)}\n" for title, values in charts if values)
    )


def _customers(spec: DatasetSpec, stats: Stats) -> str:
    names = {str(code): name for name, code in TYPES.items()}
    kinds = {names.get(code, f"free type {code}"): n for code, n in stats["tokens_by_type"].items()}
    rows = "".join(f"<tr><td>{escape(k)}</td><td class=n>{n:,}</td></tr>" for k, n in kinds.items())
    return (
        "<h2>Customers</h2>\n<h3>Customers by number of orders</h3>"
        + bars({k: n for k, n in stats["customers_by_orders"].items() if n})
        + f"\n<h3>Events by type</h3><p class=note>An order with all its lines is one.</p><table>{rows}</table>\n"
    )


def _indicators(spec: DatasetSpec, stats: Stats) -> str:
    if not stats["buyers"] or "sessions" not in stats:
        return ""
    looked = stats["sessions_viewed"] + stats["sessions_carted"] > 0
    cells = {
        "conversion rate": f"{stats['sessions_bought'] / stats['sessions']:.1%}" if looked else "unknown: no views",
        "repurchase rate": f"{1 - stats['one_time_buyers'] / stats['buyers']:.1%}",
        "purchase frequency": f"{stats['orders'] / stats['buyers']:.2f}",
    }
    if spec.value != "none":
        cells[f"order value, {spec.currency}"] = f"{stats['amount'] / stats['orders']:,.2f}"
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in cells.items())
    rows = []
    for month, buyers in stats["cohort_buyers_by_month"].items():
        orders, again = stats["cohort_orders_by_month"][month], stats["cohort_again_by_month"][month]
        amount = stats["cohort_amount_by_month"][month]
        numbers = [f"{buyers:,}", f"{again / buyers:.1%}", f"{orders / buyers:.2f}"]
        numbers += [f"{amount / orders:,.2f}", f"{amount / buyers:,.2f}"] if spec.value != "none" else []
        rows.append(f"<tr><td>{escape(month)}" + "".join(f"<td class=n>{n}" for n in numbers) + "</tr>")
    heads = ["buyers", "bought again", "orders each"] + (["order value", "spent each"] if spec.value != "none" else [])
    head = "<tr><th>first order in" + "".join(f"<th class=n>{h}" for h in heads) + "</tr>"
    steps = {"sessions": "sessions", "with a view": "sessions_viewed", "with a cart": "sessions_carted"}
    steps |= {"with a purchase": "sessions_bought", "cart left behind": "carts_left"}
    funnel = bars({name: stats[key] for name, key in steps.items()}) if looked else ""
    return (
        "<h2>Indicators</h2>\n<p class=note>Conversion: sessions with a purchase, of all sessions (half an hour without"
        " an act ends one). Repurchase: buyers with a second order. Frequency: orders per buyer.</p>\n"
        f"<dl>{facts}</dl>\n"
        + (f"<h3>From a look to a purchase</h3>{funnel}\n" if funnel else "")
        + f"<h3>By month of the first order</h3><table>{head}{''.join(rows)}</table>\n"
    )


def _sources(spec: DatasetSpec, manifest: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(s['path'])}</td><td class=n>{s['size']:,}</td></tr>" for s in manifest["sources"])
    clock = (
        f"Times are those of {spec.timezone}; one that the clock shows twice is its first pass, a skipped one moves on."
    )
    return (
        f"<h2>Where it comes from</h2>\n<table><tr><th>file<th class=n>bytes</tr>{rows}</table>\n"
        f"<p class=note>{escape(clock)} "
        f"Prepared {escape(manifest['created'])}, spec {manifest['spec_sha256'][:12]}.</p>\n"
    )


def bars(values: dict[str, float]) -> str:
    """Returns a bar chart as inline SVG, in which every bar has its value as a tooltip."""
    if not values:
        return ""
    width, height, foot = 900, 160, 18
    top = max(max(values.values()), 1e-12)
    step = width / len(values)
    parts = []
    every = max(1, math.ceil(len(values) / 12))
    for i, (name, value) in enumerate(values.items()):
        tall = max(value, 0) / top * (height - foot - 14)
        parts.append(
            f'<rect x="{i * step + 1:.1f}" y="{height - foot - tall:.1f}" width="{max(step - 2, 0.5):.1f}" '
            f'height="{tall:.1f}"><title>{escape(name)}: {value:,.0f}</title></rect>'
        )
        if i % every == 0:
            parts.append(f'<text x="{i * step + 1:.1f}" y="{height - 5}">{escape(name)}</text>')
    parts.append(f'<text x="2" y="11">highest: {top:,.0f}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'
