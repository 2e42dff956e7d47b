# One image for every command: `docker run IMAGE ingest`, `… worker`, `… status`.
# Two stages, so that nothing that only the build needs is shipped.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
# A compiler, for the C extensions: without them workers would be slower by half, so setup.py is told to insist on them.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /opt/maskline
WORKDIR /src
# Everything that .dockerignore lets through: the packages, and what builds them. The extras are those of the handler
# modules that ship. PACKAGES are those that your own modules need, and that bring handlers: "stripe acme-fares".
COPY . .
ARG PACKAGES=""
RUN --mount=type=cache,target=/root/.cache/pip REQUIRE_MASKLINE_C=1 /opt/maskline/bin/pip install ".[archive,forward,postgres]" $PACKAGES

FROM python:3.11-slim
# The directories of the spool and of an archive belong to the user before a volume is mounted there: a new volume takes
# that over. The default, ./spool, leads there by a link: a setting of the image's own would win over the file that
# MASKLINE_CONFIG names.
RUN groupadd --system --gid 10001 maskline \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin maskline \
    && install --directory --owner maskline --group maskline /var/lib/maskline/spool /var/lib/maskline/archive \
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
