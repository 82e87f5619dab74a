# evomerge in a container. For the processor:
#     docker build -t evomerge .
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" evomerge demo
# For NVIDIA GPUs (torch's wheels bring CUDA's libraries):
#     docker build --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 -t evomerge:cuda .
#     docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" evomerge:cuda search search.yaml
# The container sees the mounted folder alone: name models, tasks and runs by paths in it.
ARG BASE=python:3.12-slim-bookworm

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY evomerge evomerge
COPY fitness fitness
COPY search_spaces search_spaces
COPY experiments/zoo/models experiments/zoo/models
COPY experiments/zoo/tasks experiments/zoo/tasks
COPY experiments/quickstart/search.yaml experiments/quickstart/search.yaml
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM ${BASE}
# Extras of evomerge, such as [ray,fast].
ARG EXTRAS=""
# A package index with builds of torch for one kind of device, such as PyTorch's for CPUs, whose image is smaller by some
# gigabytes; without it PyPI's, which serve CPUs and NVIDIA GPUs.
ARG TORCH_INDEX=""
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# A base with CUDA is an Ubuntu without Python.
# hadolint ignore=DL3008
RUN if ! command -v python3; then \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && python3 -m venv /opt/evomerge
ENV PATH=/opt/evomerge/bin:$PATH
COPY requirements.lock /opt/evomerge/
COPY --from=wheel /dist /opt/evomerge/dist
# A build such as 2.13.0+cpu is newer to pip than the same version on PyPI, which has what torch itself needs.
RUN pip install --no-cache-dir -c /opt/evomerge/requirements.lock \
    ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} "$(ls /opt/evomerge/dist/*.whl)${EXTRAS}"
# Models, search files and runs are in /work; so are caches, which are kept from one container to the next.
WORKDIR /work
RUN chmod 1777 /work
ENV HOME=/work
ENTRYPOINT ["evomerge"]
CMD ["--help"]
