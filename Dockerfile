# An image that converts and trains, on all GPUs of the machine or on its CPUs.
#   docker build -t imagelmdb .
#   docker build -t imagelmdb --build-arg BASE=nvcr.io/nvidia/pytorch:YY.MM-py3 .
#   docker run --rm -v /data:/data --user "$(id -u)" imagelmdb convert --dataset /data/train -o /data/train-lmdb
#   bash scripts/train_docker.sh --train /data/train-lmdb --val /data/val-lmdb --lmdb
ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

# Any user id can run the image, even one that is not in its /etc/passwd. So caches go to /tmp, and USER is set
# because torch.compile puts it into the name of its cache.
ENV HOME=/tmp USER=trainer PYTHONUNBUFFERED=1 PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app

# The dependencies are a layer of their own, so a change of the code does not install them again. torch and
# torchvision come with the base image.
COPY pyproject.toml ./
ARG EXTRAS="dali tensorboard"
RUN python3 -c 'import os, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = [r for e in os.environ["EXTRAS"].split() for r in p["optional-dependencies"][e]]; \
print(*(r for r in p["dependencies"] + extras if not r.startswith("torch")), sep="\n")' > /tmp/requirements.txt \
    && python3 -m pip install --no-cache-dir --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt

COPY . .
# Compile the decoder for this kind of CPU: docker_entry.sh puts it where any user can use it.
RUN NUMBA_CACHE_DIR=/app/compiled python3 -c 'from imagelmdb.decode.tiles import crops; crops.compile_once()'
RUN useradd --uid 10001 --home-dir /tmp --no-create-home trainer && mkdir runs && chown trainer runs
USER 10001
ENTRYPOINT ["bash", "/app/scripts/docker_entry.sh"]
