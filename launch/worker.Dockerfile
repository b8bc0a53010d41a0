# The image of Beam's workers: Beam's own, with Millrace. Build it from the root of a checkout, for the Python of the machine that submits:
#   docker build -f launch/worker.Dockerfile -t millrace-worker:0.1.0 .
FROM apache/beam_python3.11_sdk:2.77.0
COPY . /tmp/millrace
# Beam's image has an opentelemetry-sdk, which wants the opentelemetry-api of its own version.
RUN pip install --no-cache-dir '/tmp/millrace[pipeline,s3,gcs]' opentelemetry-sdk -c /tmp/millrace/constraints.txt \
    && pip check && rm -r /tmp/millrace
