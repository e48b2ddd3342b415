# syntax=docker/dockerfile:1
# The service with an exported model: ONNX Runtime on the CPU, no PyTorch. Mount the model at /models/model.onnx.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE weights_manifest.json weights_manifest.schema.json /src/
COPY configs /src/configs
COPY dpt_zoo /src/dpt_zoo
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir "/src[serve]"

FROM ${BASE}
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["dpt-zoo", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/models/model.onnx"]
