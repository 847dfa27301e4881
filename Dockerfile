# An image with the environment of requirements.lock; torch brings CUDA, the driver is the host's:
#   docker build -t cpt_repro .
#   docker run --rm --gpus all -v "$PWD":/work cpt_repro snakemake --cores all figures/
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make g++ && rm -rf /var/lib/apt/lists/*
ENV VIRTUAL_ENV=/opt/cpt_repro PATH=/opt/cpt_repro/bin:$PATH
WORKDIR /work
COPY Makefile pyproject.toml requirements.lock README.md ./
COPY cpt_repro cpt_repro
# The environment lies outside of /work: a checkout that is mounted there is what it then imports.
RUN make env VENV=/opt/cpt_repro
CMD ["cpt-repro", "--help"]
