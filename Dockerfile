# One image for every command: `docker run IMAGE ingest`, `… worker`, `… status`.
# Two stages, so that nothing that only the build needs is shipped.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
# A compiler, for the parts in C (setup.py): without one they would be left out, and workers slower by half.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /opt/maskline
WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY maskline maskline
COPY schemas schemas
COPY runtime runtime
COPY ingest ingest
COPY worker worker
COPY handlers handlers
COPY console console
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/maskline/bin/pip install . \
    && /opt/maskline/bin/python -I -c 'import maskline.schemas.fastdecode.native, maskline.worker.native.entries, maskline.worker.native.order, maskline.worker.native.wire'

FROM python:3.11-slim
# The spool's directory belongs to the user before a volume is mounted there: a new volume takes that over. The default,
# ./spool, leads there by a link: a setting of the image's own would win over the file that MASKLINE_CONFIG names.
RUN groupadd --system --gid 10001 maskline \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin maskline \
    && install --directory --owner maskline --group maskline /var/lib/maskline/spool \
    && install --directory /app \
    && ln --symbolic /var/lib/maskline/spool /app/spool
COPY --from=build /opt/maskline /opt/maskline
ENV PATH=/opt/maskline/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Handler modules mounted below are found by their dotted names: /app/my_handlers/fares.py is my_handlers.fares.
WORKDIR /app
USER maskline
EXPOSE 8080
# The admin port is not exposed: it answers inside the container alone unless MASKLINE_ADMIN_HOST says otherwise, and is
# for nobody outside. Handler modules are imported before a worker answers: hence a start period of a minute.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["maskline", "health"]
ENTRYPOINT ["maskline"]
CMD ["ingest"]
