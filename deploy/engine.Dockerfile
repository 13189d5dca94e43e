# Coordinator, hospital and every other command of the engine. From the project's root:
#   docker build -f deploy/engine.Dockerfile -t consilium-engine:local .
FROM python:3.11.15-slim-bookworm

WORKDIR /app
COPY requirements.txt requirements-engine.txt requirements-flower.txt ./
# torch's CPU build first, because the default one brings gigabytes of CUDA; which version, requirements-engine.txt says.
RUN grep -E '^torch(vision)?==' requirements-engine.txt > /tmp/torch.txt \
    && pip install --no-cache-dir --disable-pip-version-check \
        --index-url https://download.pytorch.org/whl/cpu -r /tmp/torch.txt \
    && pip install --no-cache-dir --disable-pip-version-check -r requirements-engine.txt \
    && pip install --no-cache-dir --disable-pip-version-check --no-deps -r requirements-flower.txt \
    && rm /tmp/torch.txt

COPY engine engine
COPY federations federations
COPY deploy/healthy.py deploy/healthy.py
# The root may be read-only: libraries that insist on a home get /tmp. Whoever the container runs as may write to the
# volumes mounted on these folders, which a new volume takes its mode from.
ENV HOME=/tmp USER=consilium PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 FLWR_TELEMETRY_ENABLED=0 \
    CONSILIUM_ARTIFACTS=/artifacts CONSILIUM_CACHE=/cache
RUN mkdir -m 1777 /artifacts /cache /state

USER 10001:10001
# A coordinator's own port; hospitals here are told the same (--health-port 8081).
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=5 \
    CMD ["python", "deploy/healthy.py", "8081", "/healthz"]
ENTRYPOINT ["python", "-m", "engine"]
CMD ["--help"]
