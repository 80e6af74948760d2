# Trainer and vLLM for clusters without GPUs, for people who have Docker and kind. From the top of
# the repository:
#   docker build -f hack/images/cpu.Dockerfile --target trainer -t localhost/finetune-trainer:dev .
#   docker build -f hack/images/cpu.Dockerfile --target vllm -t localhost/finetune-vllm-cpu:dev .
# On GPUs use trainer_image/Dockerfile and a release image of vLLM instead.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS libraries
RUN apt-get update -q && apt-get install -qy --no-install-recommends gcc libc6-dev binutils
COPY hack/requirements/bootstrap.lock hack/images/requirements.ml.lock hack/images/cuda_stubs.py /build/
RUN --mount=type=cache,id=finetune-uv,target=/var/cache/uv \
    export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 \
 && python3 -m venv /tmp/uv \
 && /tmp/uv/bin/pip install --quiet --no-cache-dir --require-hashes -r /build/bootstrap.lock \
 && /tmp/uv/bin/uv venv --quiet --python python3 /opt/venv \
 && /tmp/uv/bin/uv pip install --quiet --python /opt/venv/bin/python --no-deps --require-hashes \
    --compile-bytecode -r /build/requirements.ml.lock
WORKDIR /build
RUN /opt/venv/bin/python -B -c "import glob, pathlib, cuda_stubs; \
    cuda_stubs.stub_cuda(pathlib.Path(glob.glob('/opt/venv/lib/python3*/site-packages/torch/lib')[0]))"

FROM ${BASE_IMAGE} AS vllm
RUN apt-get update -q && apt-get install -qy --no-install-recommends libnuma1 \
 && rm -rf /var/lib/apt/lists/* \
 && { getent passwd 65532 \
      || echo 'nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin' >> /etc/passwd; }
COPY --from=libraries /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    HOME=/tmp
WORKDIR /tmp
USER 65532:65532

FROM vllm AS trainer
ENV PYTHONPATH=/app
COPY operator/finetune_api /app/finetune_api
COPY trainer_image/finetune_trainer /app/finetune_trainer
