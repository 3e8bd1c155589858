# An image of choreo with the agents of this repository. For your own, COPY your agents folder instead, or derive:
#   FROM choreo-example
#   COPY agents/ agents/
# Settings come from the environment (CHOREO_URL, CHOREO_PASSWORD_FILE, ...); no secret is built in.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements/dev.txt requirements/
COPY pyproject.toml README.md LICENSE ./
COPY choreo/ choreo/
RUN pip wheel --no-deps --wheel-dir /wheels .
# The pinned file is a constraint here: it says which versions, not that the development tools are installed.
RUN python -m venv --without-pip /opt/choreo/venv \
    && pip --python /opt/choreo/venv/bin/python install --constraint requirements/dev.txt \
        "$(echo /wheels/choreo-*.whl)[uvloop]"

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="choreo" \
      org.opencontainers.image.description="Event choreography on RabbitMQ" \
      org.opencontainers.image.licenses="Apache-2.0"
# A fixed number, so that volumes and Kubernetes' runAsNonRoot can rely on it.
RUN groupadd --system --gid 10001 choreo \
    && useradd --system --uid 10001 --gid choreo --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin choreo
# The project is named, so that a volume in its place may belong to any number of the host. The health port is set here and not in CMD, so that the HEALTHCHECK is right for every `run NAME` as well.
ENV PATH=/opt/choreo/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    CHOREO_HEALTH_PORT=8080 \
    CHOREO_PROJECT=/opt/choreo/app
COPY --from=builder /opt/choreo/venv /opt/choreo/venv
WORKDIR /opt/choreo/app
COPY agents/ agents/
USER 10001:10001
STOPSIGNAL SIGTERM
# Where CHOREO_HEALTH_PORT says, which whoever runs the image may change. podman and buildah keep this line only with
# `build --format docker`: the OCI format has no place for it.
# Without a proxy, whatever the environment says: it would be asked for 127.0.0.1 too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:' + os.environ['CHOREO_HEALTH_PORT'] + '/ready', timeout=3)"]
ENTRYPOINT ["choreo"]
CMD ["run", "--all"]
