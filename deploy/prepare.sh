#!/bin/sh
# Makes what docker-compose.yml needs and Git does not have: .env, ./secrets and ./models. What is there already stays as it is.
set -eu
cd "$(dirname "$0")/.."

# Under sudo, the files belong to whoever called it.
give() {
    if [ -n "${SUDO_UID:-}" ]; then
        chown "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$@"
    fi
}

if [ ! -e .env ]; then
    cp .env.example .env
    give .env
    echo "made .env: it names the profile and the models"
fi

# The containers read it as a user of their own.
if [ ! -d models ]; then
    mkdir models
    chmod 755 models
    give models
    echo "made models: put your models there, or name them by their hub names"
fi

umask 077
mkdir -p secrets
give secrets
for name in database_password monitor_password api_key admin_key grafana_password vllm_api_key; do
    file="secrets/$name"
    if [ ! -s "$file" ]; then
        od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$file"
        echo "made $file"
    fi
done
# Yours to fill in, for models that ask for a token.
[ -e secrets/hf_token ] || : > secrets/hf_token
for file in secrets/*; do
    give "$file"
    # Containers read it as users of their own; the directory keeps everybody else out. You may write it, to rotate it.
    chmod 644 "$file"
done
