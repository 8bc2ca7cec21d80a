"""The numbers that the deployed dashboard and alert rules ask for, by a parser of PromQL.

promql-parser is the parser of GreptimeDB; an expression that it does not take is no PromQL.
"""

import json
from pathlib import Path

import promql_parser

DEPLOY = Path(__file__).parents[2] / "deploy"
# Prometheus records it by itself.
OF_PROMETHEUS = {"up"}


def names(node):
    """Each metric that an expression selects."""
    if isinstance(node, promql_parser.VectorSelector):
        return {node.name}
    parts = [getattr(node, part, None) for part in ("expr", "lhs", "rhs", "vector_selector", "param")]
    arguments = getattr(node, "args", None) or []
    found = (names(part) for part in [*parts, *arguments] if isinstance(part, promql_parser.Expr))
    return set().union(*found)


def panels(value):
    """The expressions of a dashboard."""
    if isinstance(value, dict):
        own = [value["expr"]] if isinstance(value.get("expr"), str) else []
        return own + [one for part in value.values() for one in panels(part)]
    return [one for part in value for one in panels(part)] if isinstance(value, list) else []


def expressions():
    dashboard = panels(json.loads((DEPLOY / "grafana/dashboard.json").read_text()))
    rules = (DEPLOY / "prometheus/alerts.yml").read_text().splitlines()
    alerts = [line.strip().removeprefix("expr: ") for line in rules if line.strip().startswith("expr: ")]
    assert len(dashboard) > 10 and len(alerts) > 5, "the files were not read"
    return dashboard + alerts


def check(scrapes):
    """Holds that every number asked for is in one of the scrapes; how many expressions there are."""
    samples = [line for scrape in scrapes for line in scrape.splitlines() if line and not line.startswith("#")]
    there = {line.split("{")[0].split(" ")[0] for line in samples} | OF_PROMETHEUS
    for expression in expressions():
        asked = names(promql_parser.parse(expression.replace("$__rate_interval", "5m")))
        assert asked, f"{expression} names no metric"
        assert asked <= there, f"{expression} asks for {asked - there}, which no node shows"
    return len(expressions())
