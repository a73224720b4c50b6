"""How many files this process may have open: every connection is one."""

import resource

import structlog

OTHERS = 512
"""Files besides the clients' connections: the database's, the engine's and the rewards' connections, versions, logs."""

log = structlog.get_logger(__name__)


def make_room(connections: int, spare: int) -> int:
    """Raise the soft limit of open files for so many connections and some spare ones; how many there is room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + spare + OTHERS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    room = max(1, soft - spare - OTHERS, soft // 4)
    log.warning(
        "this process may not open enough files for service.max_connections; it takes fewer connections. "
        "Raise the hard limit of open files (ulimit -Hn)",
        files=soft,
        wanted=needed,
        connections=room,
    )
    return room
