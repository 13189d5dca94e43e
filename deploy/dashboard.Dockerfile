# The dashboard. From the project's root: docker build -f deploy/dashboard.Dockerfile -t consilium-dashboard:local .
FROM python:3.11.15-slim-bookworm

WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

COPY . .
# The root may be read-only: libraries that insist on a home get /tmp. /artifacts wants the coordinator's volume.
ENV HOME=/tmp USER=consilium PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 CONSILIUM_ARTIFACTS=/artifacts
RUN mkdir -m 1777 /artifacts

USER 10001:10001
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "deploy/healthy.py", "8501", "/_stcore/health"]
# All addresses of the container; which of the machine's it is reached by, its publisher says (compose: 127.0.0.1).
CMD ["streamlit", "run", "app.py", "--server.address=0.0.0.0", "--server.port=8501", "--server.headless=true", \
     "--server.fileWatcherType=none"]
