# Three images, one per target: operator, router, modelserver.
#   docker build --target router --tag multimodel/router:dev .
# Third-party packages come before our source: an edit of the source installs nothing anew.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS requirements
WORKDIR /requirements
COPY pyproject.toml requirements/from_extra.py ./
RUN for extra in operator router modelserver; do python3 from_extra.py "$extra" > "$extra.txt" || exit 1; done

FROM ${BASE_IMAGE} AS runtime
RUN echo 'multimodel:x:65532:65532::/tmp:/usr/sbin/nologin' >> /etc/passwd && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY constraints.txt /requirements/

FROM runtime AS operator-packages
COPY --from=requirements /requirements/operator.txt /requirements/
RUN pip install -c /requirements/constraints.txt -r /requirements/operator.txt

FROM runtime AS router-packages
COPY --from=requirements /requirements/router.txt /requirements/
RUN pip install -c /requirements/constraints.txt -r /requirements/router.txt

FROM runtime AS modelserver-packages
# Triton compiles what launches a kernel, and products with bf16 weights are compiled for the processor they run on.
RUN command -v gcc || { apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*; }
COPY --from=requirements /requirements/modelserver.txt /requirements/
RUN pip install -c /requirements/constraints.txt -r /requirements/modelserver.txt

FROM operator-packages AS operator
COPY api/multimodel_api multimodel_api
COPY operator/multimodel_operator multimodel_operator
USER 65532:65532
CMD ["python", "-m", "multimodel_operator", "--health-host=0.0.0.0"]

FROM router-packages AS router
COPY api/multimodel_api multimodel_api
COPY router/multimodel_router multimodel_router
USER 65532:65532
CMD ["python", "-m", "multimodel_router", "--help"]

FROM modelserver-packages AS modelserver
COPY examples/models examples/models
COPY api/multimodel_api multimodel_api
COPY modelserver/multimodel_server multimodel_server
USER 65532:65532
CMD ["python", "-m", "multimodel_server", "--help"]
