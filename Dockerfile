# One base for both stages: the virtual environment links to the interpreter at the path where it was made.
ARG PYTHON_IMAGE=python:3.13.14-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# Dependencies change less often than the source: a layer of their own. Both environments are made without pip,
# so that none is carried along. Wheels only: nothing is compiled here, and no package's setup code runs.
COPY requirements.lock ./
RUN python3 -m venv --without-pip /opt/convoy \
 && python3 -m pip --python /opt/convoy/bin/python3 install --no-compile --only-binary :all: \
      --require-hashes -r requirements.lock

# The build backend comes from the development lock with its hashes; pip's build isolation would take whatever
# is newest. A dependency that hatchling gains one day ends the build here and names itself.
COPY requirements-dev.lock ./
RUN awk '/^[a-z]/ { wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } wanted' \
      requirements-dev.lock > backend.lock \
 && python3 -m venv --without-pip /opt/backend \
 && python3 -m pip --python /opt/backend/bin/python3 install --only-binary :all: --require-hashes -r backend.lock

COPY pyproject.toml README.md LICENSE ./
COPY service ./service
COPY docs/schemas ./docs/schemas
# Compiled once, here: the root file system is read-only at run time. The bytecode names no time stamp of its
# source, so copying it cannot make it stale.
RUN python3 -m pip --python /opt/backend/bin/python3 wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && python3 -m pip --python /opt/convoy/bin/python3 install --no-compile --no-deps --no-index /wheels/*.whl \
 && /opt/convoy/bin/python3 -m compileall -q --invalidation-mode unchecked-hash /opt/convoy/lib


FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="convoy" \
      org.opencontainers.image.description="Forwards per-conversation message events from Kafka to a Conversations API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
COPY --from=build /opt/convoy /opt/convoy
ENV PATH=/opt/convoy/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A number, because the kubelet cannot tell of a name that it is not root (runAsNonRoot).
USER 10001:10001
EXPOSE 8080
# The exec form: the process is PID 1 and gets SIGTERM itself.
ENTRYPOINT ["convoy"]
CMD ["run"]
