# The server with vLLM beside its default engine, for `spec.engine: VLLM`. Build from the repository's root:
#
#     docker build --file inference_image/vllm.Dockerfile --tag finetune-inference-vllm .
#
# The base image is vLLM's own, of the release that `make check-vllm` tests. It has matching versions of vLLM, torch and CUDA, which
# stay unchanged; missing packages are added without dependencies.
ARG BASE_IMAGE=docker.io/vllm/vllm-openai:v0.32.0
FROM ${BASE_IMAGE}
COPY inference_image/vllm-requirements.txt /opt/
RUN --mount=type=bind,source=crds,target=/src/crds,rw \
    --mount=type=bind,source=model,target=/src/model,rw \
    --mount=type=bind,source=inference_image,target=/src/inference_image,rw \
    --mount=type=cache,id=finetune-pip,target=/root/.cache/pip \
    python3 -m pip install --disable-pip-version-check --quiet --no-deps --target /opt/application \
        --requirement /opt/vllm-requirements.txt /src/crds /src/model /src/inference_image
# Python must not import modules from the root folder, where users' data is mounted: /datasets would be a module.
WORKDIR /opt/application
# The root file system is read-only at run time, and the user has no name, which torch needs for compilation.
ENV PYTHONPATH=/opt/application PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp USER=server \
    FINETUNE_SERVER_ENGINE=vllm
USER 10001:10001
ENTRYPOINT ["python3", "-m", "finetune_inference"]
