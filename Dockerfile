# syntax=docker/dockerfile:1.7
# Targets: gateway (draws on vLLM servers, without torch), service (draws by itself, on a CPU), service-vllm (vLLM, in process or
# as a server of a fleet) and trainer.

# The interpreter that the versions in constraints.txt were tested with.
ARG PYTHON=docker.io/library/python:3.11.14-slim-bookworm

FROM ${PYTHON} AS python
# The HTTP client trusts the system's certificates.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 bonbon \
    && useradd --uid 10001 --gid bonbon --home-dir /tmp --no-create-home --shell /usr/sbin/nologin bonbon \
    && install --directory --owner=bonbon --group=bonbon /data /models
ENV PATH=/opt/bonbon/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/data/huggingface \
    BONBON_DATA_DIR=/data
# bonbon.toml is read from here, where there is one.
WORKDIR /data
# The commit that the image is built from; `docker build --build-arg REVISION=$(git rev-parse HEAD)` fills it in.
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bonbon" \
    org.opencontainers.image.description="Best-of-n quality from a language model, then distilled so that fewer draws give it." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="$REVISION"

FROM python AS build
# torch for a CPU; with an empty index pip takes the one for CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
# And a short name for the models that ship with the package.
RUN python -m venv /opt/bonbon \
    && ln -s "$(/opt/bonbon/bin/python -c 'from sysconfig import get_path; print(get_path("purelib"))')/bonbon/demo/tiny" \
    /opt/bonbon/tiny
# The dependencies first: they stay as they are when only the source changes. What builds the package is locked, too, and no build
# step below may fetch anything else for it (--no-build-isolation).
COPY pyproject.toml constraints.txt requirements.lock deploy/install_locked.py README.md LICENSE ./
COPY bonbon/__init__.py bonbon/
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir service trainer \
    && python install_locked.py hatchling

FROM build AS build-gateway
RUN --mount=type=cache,target=/root/.cache/pip \
    python install_locked.py '.[hub,otel,postgres]' --no-build-isolation
COPY . .
RUN pip install --no-deps --no-build-isolation --force-reinstall .

FROM build AS build-service
RUN --mount=type=cache,target=/root/.cache/pip \
    python install_locked.py '.[embedded,otel,postgres]' --no-build-isolation ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
COPY . .
RUN pip install --no-deps --no-build-isolation --force-reinstall .

FROM build AS build-trainer
RUN --mount=type=cache,target=/root/.cache/pip \
    python install_locked.py '.[train,postgres]' --no-build-isolation ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
COPY . .
RUN pip install --no-deps --no-build-isolation --force-reinstall .

FROM build AS build-vllm
# By version, not by hash: vLLM brings a hundred packages that nothing else needs, and through numba an older numpy.
RUN --mount=type=cache,target=/root/.cache/pip \
    grep -vE '^numpy==' constraints.txt > constraints-vllm.txt \
    && pip install --constraint constraints-vllm.txt --no-build-isolation '.[vllm,otel,postgres]'
COPY . .
RUN pip install --no-deps --no-build-isolation --force-reinstall .

FROM python AS serving
COPY deploy/download.sh /usr/local/bin/download-models
USER 10001:10001
EXPOSE 8080
ENV BONBON_SERVICE__HOST=0.0.0.0 BONBON_SERVICE__PORT=8080
HEALTHCHECK --interval=5s --timeout=10s --start-period=10m --retries=3 CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health/ready', timeout=8)"]
CMD ["bonbon", "serve", "--json-logs"]

FROM serving AS gateway
COPY --from=build-gateway /opt/bonbon /opt/bonbon

FROM serving AS service
COPY --from=build-service /opt/bonbon /opt/bonbon

FROM serving AS service-vllm
USER 0:0
# Triton compiles as it starts.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV VLLM_CACHE_ROOT=/tmp/vllm
COPY --from=build-vllm /opt/bonbon /opt/bonbon
USER 10001:10001

FROM python AS trainer
COPY --from=build-trainer /opt/bonbon /opt/bonbon
USER 10001:10001
# It has no port; this asks whether it can see the registry.
HEALTHCHECK --interval=1m --timeout=30s --start-period=2m --retries=3 CMD ["bonbon", "models", "list", "--json"]
CMD ["bonbon", "loop"]
