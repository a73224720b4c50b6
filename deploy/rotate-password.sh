#!/bin/sh
# Gives a role of the database a new password, and starts anew what uses it: deploy/rotate-password.sh bonbon|monitor
#
# Connections that are open go on, and a group that is answered while the service has only the old password waits in the spool: no
# answer is lost. The service drains before it stops.
set -eu
cd "$(dirname "$0")/.."
case ${1:-} in
    bonbon) file=secrets/database_password uses='service trainer service-gpu trainer-gpu' ;;
    monitor) file=secrets/monitor_password uses=postgres-exporter ;;
    *) echo "usage: deploy/rotate-password.sh bonbon|monitor" >&2
        exit 2 ;;
esac
umask 077
new=$(mktemp secrets/.new.XXXXXX)
trap 'rm -f "$new"' EXIT
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$new"
# On standard input, so that no command line shows it.
printf "ALTER ROLE %s PASSWORD '%s';\n" "$1" "$(cat "$new")" \
    | docker compose exec -T postgres psql --quiet --set ON_ERROR_STOP=1 --username bonbon --dbname bonbon
# Written in place: a container has the file itself mounted, not its name.
cat "$new" > "$file"
echo "changed the password of $1"
running=$(docker compose ps --services)
# shellcheck disable=SC2086 # names without spaces, one argument each
set -- $(for name in $uses; do echo "$running" | grep -x "$name" || true; done)
if [ $# -gt 0 ]; then
    docker compose up --detach --no-deps --force-recreate "$@"
fi
