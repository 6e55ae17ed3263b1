# For `layersync train` and `layersync webui`.
#
#   docker build -t layersync .
#   docker run --rm -v "$PWD:/work" layersync train
#   docker run --rm -v "$PWD:/work" -p 127.0.0.1:8765:8765 layersync webui --host 0.0.0.0 --port 8765
#
# With CUDA, on any image of pytorch/pytorch that has the torch which requirements.txt names; its torch is the one used:
#
#   docker build -t layersync:cuda --build-arg BASE=pytorch/pytorch:TAG --build-arg TORCH_INDEX= .
#   docker run --rm --gpus all -v "$PWD:/work" layersync:cuda train
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
# torch for CPUs, an eighth of the size of the one on PyPI. Empty: none but PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY . .
# In a virtual environment that sees the image's own packages, so that an image with torch keeps it.
# The distributions are installed as a user has them, without their sources beside them.
RUN python3 -m venv --system-site-packages /opt/layersync \
    && sed 's|^-e |./|' requirements.txt > packages.txt \
    && PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" /opt/layersync/bin/pip install --no-cache-dir -r packages.txt

FROM ${BASE}
COPY --from=build /opt/layersync /opt/layersync
ENV PATH=/opt/layersync/bin:$PATH
RUN useradd --create-home --uid 10001 layersync && mkdir /work && chown layersync /work
USER 10001
WORKDIR /work
EXPOSE 8765
ENTRYPOINT ["layersync"]
CMD ["train"]
