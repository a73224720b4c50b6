"""Raises the limit of open files, because every connection is one."""

import resource

import structlog

OTHERS = 512
"""Open files other than client connections: connections of the database, engine and rewards, model files and logs."""

log = structlog.get_logger(__name__)


def raise_file_limit(connections: int, spare: int) -> int:
    """Raises the soft limit of open files for the connections; returns how many connections the limit then allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + spare + OTHERS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    allowed = max(1, soft - spare - OTHERS, soft // 4)
    log.warning(
        "the limit of open files is too low for service.max_connections; fewer connections are accepted. "
        "Raise the hard limit (ulimit -Hn)",
        files=soft,
        wanted=needed,
        connections=allowed,
    )
    return allowed
