# The container as Grand Challenge users know it: scans in /input, masks in /output, no network, any uid, no torch.
ARG BASE_IMAGE=python:3.11-slim
# of the target `training`: PyTorch's wheels bring CUDA; for another one give an image with it, such as nvidia/cuda:12.6.3-runtime-ubuntu24.04
ARG TRAINING_BASE=${BASE_IMAGE}
FROM ${BASE_IMAGE} AS common

# cuda: ONNX Runtime with the CUDA 12 libraries (runs on CPU too); cpu: a much smaller image
ARG ACCELERATOR=cuda

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN groupadd -r user && useradd -m --no-log-init -r -g user user \
    && mkdir -p /opt/app /opt/ml/model /input /output \
    && chown user:user /opt/app /input /output

WORKDIR /opt/app
COPY requirements.txt requirements-cuda.txt requirements-serve.txt ./

# a host behind a proxy with its own certificates hands them over as the secret pip_ca; nothing of it stays in the image
RUN --mount=type=secret,id=pip_ca \
    if [ -s /run/secrets/pip_ca ]; then export PIP_CERT=/run/secrets/pip_ca; fi; \
    export PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1; \
    pip install --quiet -r requirements.txt \
    && case "$ACCELERATOR" in \
         cpu) ;; \
         cuda) pip uninstall --quiet -y onnxruntime && pip install --quiet -r requirements-cuda.txt ;; \
         *) echo "ACCELERATOR is cuda or cpu, not '$ACCELERATOR'" >&2; exit 2 ;; \
       esac

COPY LICENSE process.py ./
COPY hemseg ./hemseg
COPY weights/hemseg.onnx weights/strip.onnx weights/classifier.onnx weights/kinds.npz weights/manifest.json weights/LICENSE weights/MODEL_CARD.md ./weights/
RUN python -m compileall -q hemseg process.py && chmod -R a+rX /opt/app

USER user
ENTRYPOINT ["python", "-m", "process"]

# hemseg:serve, for the platform's HTTP calls: GET /health, POST /invoke
FROM common AS serve
USER root
RUN --mount=type=secret,id=pip_ca \
    if [ -s /run/secrets/pip_ca ]; then export PIP_CERT=/run/secrets/pip_ca; fi; \
    export PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1; \
    pip install --quiet -r requirements-serve.txt
USER user
ENV HEMSEG_MODE=serve
LABEL org.grand-challenge.api-method="invoke"
EXPOSE 4743

# hemseg:inventory, what is in hemseg:latest, for `build.sh --sbom`
FROM common AS inventory
USER root
COPY sbom.py /tmp/
RUN --mount=type=secret,id=pip_ca \
    if [ -s /run/secrets/pip_ca ]; then export PIP_CERT=/run/secrets/pip_ca; fi; \
    export PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1; \
    python -m venv /tmp/tools && /tmp/tools/bin/pip install --quiet cyclonedx-bom==7.5.0 \
    && /tmp/tools/bin/cyclonedx-py environment "$(command -v python)" | /tmp/tools/bin/python /tmp/sbom.py > /sbom.cdx.json

# hemseg:training, for clusters: `docker build --target training -t hemseg:training .`, then
# `docker run --gpus all -v DATA:/data:ro -v RUNS:/runs hemseg:training all --config finetune --init weights --data /data --run /runs/mine`
FROM ${TRAINING_BASE} AS training
ENV PYTHONUNBUFFERED=1 HOME=/tmp NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN command -v python3 && python3 -c "import venv, ensurepip, sys; sys.exit(sys.version_info < (3, 11))" \
    || { apt-get update -qq && apt-get install -qq -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; }
WORKDIR /opt/hemseg
COPY pyproject.toml setup.py README.md LICENSE requirements.txt ./
COPY hemseg ./hemseg
COPY training ./training
COPY benchmarks ./benchmarks
COPY weights ./weights
RUN --mount=type=secret,id=pip_ca \
    if [ -s /run/secrets/pip_ca ]; then export PIP_CERT=/run/secrets/pip_ca; fi; \
    export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1; \
    sed -E '/^ *--hash/d; s/ *\\$//' requirements.txt > /tmp/constraints.txt \
    && python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --quiet --constraint /tmp/constraints.txt --editable '.[training]' \
    && rm /tmp/constraints.txt && chmod -R a+rX /opt/hemseg
# MONAI asks for the user's name, which a bare uid has not
ENV USER=hemseg
USER 1000
ENTRYPOINT ["/opt/venv/bin/python", "-m", "training"]

# hemseg:latest, one run a call: what `docker build` makes when no target is named
FROM common AS batch
