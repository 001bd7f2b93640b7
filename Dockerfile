# Darkroom as a container. Built as it is, it serves; `--target training` trains.
#
#   docker build --tag darkroom .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --publish 127.0.0.1:8000:8000 \
#     --volume "$PWD/artifacts/model.pt:/artifacts/model.pt:ro" darkroom
#
# With the model baked in:
#
#   FROM darkroom
#   COPY --chmod=0444 model.pt /artifacts/model.pt
#
# Every flag of `python -m service` is a DARKROOM_ variable too; give the port as one, so that HEALTHCHECK knows it.
# Building takes a C compiler from the base's Debian mirror, and leaves it behind. Build arguments:
#   BASE_IMAGE   any Debian with Python 3.11 to 3.13 and venv, its own or one with headers; the CA certificates that it
#                holds are trusted
#   INDEX_URL    the package index, where it is not the tools' own default
#   EXTRAS       `tracing`, for --tracing
#   TORCH_INDEX  an index with CPU builds of the locked torch and torchvision, which spare the image gigabytes of CUDA
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG INDEX_URL
ARG TORCH_INDEX
ARG EXTRAS
ENV PATH="/opt/uv/bin:${PATH}" UV_SYSTEM_CERTS=1 UV_NO_CACHE=1 UV_PYTHON=/opt/darkroom/bin/python
WORKDIR /build
COPY pyproject.toml requirements.lock requirements-base.lock ./
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.txt && python3 -m venv /opt/uv \
    && pip install --no-cache-dir --require-hashes ${INDEX_URL:+--index-url "${INDEX_URL}"} --requirement uv.txt \
    && printf 'torch\ntorchvision\n' > apart.txt && echo matplotlib > training.txt \
    && echo triton > compilers.txt && uv venv --python python3 /opt/darkroom
# pyproject.toml says which packages there are; the lock, as constraints, says which version of each, and with which hashes:
# --require-hashes refuses whatever the lock does not name. torch comes apart, for it may come from another index; without
# its compiler, which would be a sixth of the image and which serving does not use, nor what training alone does.
RUN uv pip install --require-hashes ${INDEX_URL:+--default-index "${INDEX_URL}"} \
      --requirement pyproject.toml ${EXTRAS:+--extra "${EXTRAS}"} --constraint requirements-base.lock \
      --excludes apart.txt --excludes training.txt
RUN if [ -n "${TORCH_INDEX}" ]; then \
      grep -oE '^torch(vision)?==[^ ]+' requirements.lock > torch.txt \
      && uv pip install --compile-bytecode ${INDEX_URL:+--default-index "${INDEX_URL}"} \
           --index "${TORCH_INDEX}" --requirement torch.txt; \
    else \
      uv pip install --compile-bytecode ${INDEX_URL:+--default-index "${INDEX_URL}"} \
        --require-hashes --requirement pyproject.toml --constraint requirements.lock \
        --excludes compilers.txt --excludes training.txt; \
    fi


FROM build AS compiled
ARG INDEX_URL
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && if ! test -e "$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h"; then \
      apt-get install --yes --no-install-recommends python3-dev; \
    fi
RUN uv pip install --require-hashes ${INDEX_URL:+--default-index "${INDEX_URL}"} \
      --requirement pyproject.toml --extra compile --extra tracing --constraint requirements-base.lock \
      --excludes apart.txt --excludes training.txt
COPY models models
COPY service service
RUN /opt/darkroom/bin/python -B -m service.compile


FROM ${BASE_IMAGE} AS runtime
# The base's pip is not needed any more, and scanners count it. A new volume takes over the owner of /artifacts.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip \
    && useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /tmp darkroom \
    && install --directory --owner darkroom --group darkroom /artifacts
COPY --from=build /opt/darkroom /opt/darkroom
ENV PATH="/opt/darkroom/bin:${PATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /app
COPY models models
STOPSIGNAL SIGTERM


FROM runtime AS training
ARG INDEX_URL
COPY --from=build /opt/uv/bin/uv /usr/local/bin/uv
COPY --from=build /build /build
RUN UV_SYSTEM_CERTS=1 uv pip install --no-cache --python /opt/darkroom/bin/python --compile-bytecode --require-hashes \
      ${INDEX_URL:+--default-index "${INDEX_URL}"} \
      --requirement /build/pyproject.toml --constraint /build/requirements-base.lock --excludes /build/apart.txt
# For `--compile`, on a GPU alone.
RUN if python -c "import sys, torch; sys.exit(torch.version.cuda is None)"; then \
      sed -n '/^triton==/,/[^\\]$/p' /build/requirements.lock > /tmp/triton.txt \
      && UV_SYSTEM_CERTS=1 uv pip install --no-cache --python /opt/darkroom/bin/python --compile-bytecode --require-hashes \
           --no-deps ${INDEX_URL:+--default-index "${INDEX_URL}"} --requirement /tmp/triton.txt; \
    fi
COPY training training
USER 10001:10001
LABEL org.opencontainers.image.title="Darkroom training" \
      org.opencontainers.image.description="An image folder goes in, a classifier in one file comes out." \
      org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["python", "-m", "training"]


FROM runtime AS serving
COPY --from=compiled /build/service service
USER 10001:10001
ENV DARKROOM_MODEL=/artifacts/model.pt DARKROOM_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-I", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('DARKROOM_PORT', '8000') + '/health', timeout=4)"]
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="Darkroom" \
      org.opencontainers.image.description="Serves one image classifier over HTTP, in batches." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["python", "-m", "service"]
