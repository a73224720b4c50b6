#!/bin/sh
# Fetches the models that are named by a hub name into the hub's cache (HF_HOME), with progress: download-models NAME...
# A directory is left alone. A private or gated model needs a token in the file that HF_TOKEN_PATH names.
set -eu
for name in "$@"; do
    if [ -d "$name" ]; then
        echo "$name is a directory and is used as it is."
        continue
    fi
    case $name in
        /*) echo "$name is not there: put the model's directory into ./models, which is /models in the containers." >&2
            exit 1 ;;
        *://* | *:*) echo "$name is not a model on the hub, so there is nothing to fetch."
            continue ;;
    esac
    echo "Fetching $name from the hub."
    # Never code or pickles: what bonbon/modelfiles.py reads, and nothing else.
    hf download "$name" --format human --include '*.json' --include '*.jinja' --include '*.safetensors' --include '*.model' \
        --include '*.tiktoken' --include merges.txt --include vocab.txt
done
