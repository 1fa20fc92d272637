# The page and the HTTP interface of `zoo app`; docs/app.md says how to run it.
FROM python:3.12-slim

# The CPU's wheels: those of the default index bring gigabytes for GPUs.
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu

WORKDIR /source
COPY pyproject.toml README.md LICENSE registry.yaml ./
COPY core core
COPY plugins plugins
COPY examples examples
RUN pip install --no-cache-dir '.[app,heatmaps]' && useradd --create-home --uid 1000 zoo

USER zoo
WORKDIR /home/zoo
# Uploads go to /tmp; the weights are in the package, so nothing is fetched and nothing else is written.
ENV HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/api/v1/health')"]
# Beyond loopback `zoo app` asks for a login: DETECTOR_ZOO_AUTH=USER:PASSWORD.
CMD ["zoo", "app", "--host", "0.0.0.0"]
