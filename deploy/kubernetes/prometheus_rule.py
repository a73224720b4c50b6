"""Writes the rules of deploy/prometheus as the PrometheusRule that the Prometheus Operator reads.

`python deploy/kubernetes/prometheus_rule.py [FILE]`
"""

import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = sorted((HERE.parent / "prometheus" / "rules").glob("*.yml"))
FILE = HERE / "components" / "monitoring" / "rules.yaml"


def prometheus_rule() -> dict[str, Any]:
    """The resource with the groups of every file of rules."""
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "bonbon", "namespace": "bonbon", "labels": {"app": "gateway"}},
        "spec": {"groups": groups},
    }


def main() -> None:
    text = yaml.safe_dump(prometheus_rule(), sort_keys=False, width=120, allow_unicode=True)
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    file.write_text("# Made from deploy/prometheus/rules by `make docs`; edit those.\n" + text)


if __name__ == "__main__":
    main()
