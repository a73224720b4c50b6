#!/bin/sh
# Makes the secrets that docker-compose.yml reads from files, where they are not there yet.
set -eu
cd "$(dirname "$0")/.."
umask 077
mkdir -p secrets
for name in database_password api_key admin_key grafana_password vllm_api_key; do
    file="secrets/$name"
    if [ ! -s "$file" ]; then
        od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$file"
        echo "made $file"
    fi
    # Containers read it as users of their own; the directory keeps everybody else out.
    chmod 444 "$file"
done
