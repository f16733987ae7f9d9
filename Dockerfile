# attnlab with everything that its tests need; `docker build -t attnlab .`, then
#   docker run -v "$PWD/runs:/attnlab/runs" attnlab train position=alibi trainer.max_steps=100
#   docker run --entrypoint .ci/run attnlab
FROM python:3.11-slim-bookworm
WORKDIR /attnlab
COPY .ci/packages.txt .ci/packages.txt
RUN apt-get update \
    && xargs -a .ci/packages.txt apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
COPY . .
RUN make .venv/.installed
ENV PATH=/attnlab/.venv/bin:$PATH
ENTRYPOINT ["attnlab"]
