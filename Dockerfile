# The worker (default) and, as a second target, the simulator: docker build [--target simulator] .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# `@sha256:…`: the tag's content as it was when somebody looked (deploy/README.md).
ARG PYTHON_DIGEST=

# --- Packages, by hash -----------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE}${PYTHON_DIGEST} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1
WORKDIR /build
COPY requirements/uv.txt requirements/
RUN python -m pip install --no-cache-dir --require-hashes -r requirements/uv.txt \
    && python -m venv --without-pip /opt/venv

FROM build AS build-worker
COPY requirements/run.txt requirements/
RUN uv pip install --python /opt/venv/bin/python --require-hashes -r requirements/run.txt

FROM build AS build-simulator
COPY requirements/simulator.txt requirements/
RUN uv pip install --python /opt/venv/bin/python --require-hashes -r requirements/simulator.txt

# --- What both images are made of ------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE}${PYTHON_DIGEST} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# The folder is the store where LONGTAKE_STORE_URL says so; a named volume mounted there takes over its owner.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin longtake \
    && install -d -o longtake -g longtake /var/lib/longtake
WORKDIR /app
USER longtake

# --- The simulator ---------------------------------------------------------------------------------------------------
FROM base AS simulator
COPY --from=build-simulator /opt/venv /opt/venv
COPY simulator simulator
CMD ["python", "-m", "simulator"]

# --- The worker ------------------------------------------------------------------------------------------------------
FROM base AS worker
COPY --from=build-worker /opt/venv /opt/venv
COPY longtake longtake
COPY activities activities
COPY workflows workflows
COPY cli cli
COPY worker.py starter.py ./
# No HEALTHCHECK: a worker serves no port to ask; it ends when it cannot go on, and is then started again. Whether it
# polls, Temporal knows (`temporal task-queue describe`); that it has begun to, `--ready-file` tells.
CMD ["python", "worker.py"]
