"""Prints the reports of a directory as one Markdown table: a column per gateway, a row per figure."""

import json
import pathlib
import sys

NAMES = {"forebay": "Forebay", "nginx": "nginx", "haproxy": "HAProxy", "envoy": "Envoy"}


def total(counts):
    detail = ", ".join(f"{n} {why}" for why, n in counts.items())
    return f"{sum(counts.values())}" + (f" ({detail})" if detail else "")


def closed(phase):
    seen = phase["upstream"]
    return seen["closed_by_gateway"] + seen["reset_by_gateway"]


def added(report, which):
    return f"{report['added_ms'][which]:+.2f}"


ROWS = {
    "requests": lambda r: f"{r['measured']['requests']:,}",
    "of these streams": lambda r: f"{r['measured']['streams']:,}",
    "reconfigurations": lambda r: f"{r['measured']['hooks']['run']} ({r['measured']['hooks']['failed']} failed)",
    "failed": lambda r: total(r["measured"]["failed"]),
    "cut": lambda r: total(r["measured"]["cut"]),
    "reset on a reused connection": lambda r: r["measured"]["reset"]["reused"],
    "reset on a new connection": lambda r: r["measured"]["reset"]["new"],
    "executed more than once": lambda r: r["measured"]["duplicated"],
    "**lost per 1,000 reconfigurations**": lambda r: f"**{1000 * r['lost_per_reconfiguration']:.0f}**",
    "lost without reconfiguring": lambda r: lost(r["baseline"]),
    "client connections opened, without / with": lambda r: f"{r['baseline']['client_connections_opened']} / "
    f"{r['measured']['client_connections_opened']}",
    "upstream connections opened per 1,000 requests, without / with": lambda r: " / ".join(
        f"{r[phase]['upstream']['opened_per_1000']:.2f}" for phase in ("baseline", "measured")
    ),
    "upstream connections closed by the gateway, without / with": lambda r: f"{closed(r['baseline'])} / "
    f"{closed(r['measured'])}",
    "p50 without, ms": lambda r: f"{r['baseline']['answer_ms']['p50']:.2f}",
    "p50 added, ms": lambda r: added(r, "p50"),
    "p99 without, ms": lambda r: f"{r['baseline']['answer_ms']['p99']:.2f}",
    "p99 added, ms": lambda r: added(r, "p99"),
    "p99.9 added, ms": lambda r: added(r, "p999"),
    "longest silence in a stream, without / with, ms": lambda r: f"{r['baseline']['silence_ms']['max']:.0f} / "
    f"{r['measured']['silence_ms']['max']:.0f}",
}


def lost(phase):
    kinds = list(phase["failed"].values()) + list(phase["cut"].values()) + list(phase["reset"].values())
    return sum(kinds)


def main(directory):
    reports = {}
    for name, title in NAMES.items():
        path = pathlib.Path(directory) / f"{name}.json"
        if path.exists() and path.stat().st_size:
            reports[title] = json.loads(path.read_text())
    print("| | " + " | ".join(reports) + " |")
    print("|---|" + "---:|" * len(reports))
    for row, value in ROWS.items():
        print(f"| {row} | " + " | ".join(str(value(report)) for report in reports.values()) + " |")


main(sys.argv[1])
