# CPU:  docker build -t nexacompute .
# CUDA: docker build -t nexacompute --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Run:  docker run --rm -v "$PWD/data:/lab/data" -v "$PWD/artifacts:/lab/artifacts" -v "$PWD/runs:/lab/runs" -v "$PWD/logs:/lab/logs" nexacompute train --config configs/default.yaml
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# Where torch comes from; the default has no CUDA in it and is a fifth of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /lab
COPY . /lab
RUN bash scripts/install_image.sh "${TORCH_INDEX}"

ENV PATH=/opt/nexa/bin:$PATH
ENTRYPOINT ["nexa"]
CMD ["doctor"]
