#!/usr/bin/env bash
# An MLflow tracking server for a cluster. Copy it, or set the variables; mlflow-server.md says how.
set -euo pipefail

: "${BIND:=127.0.0.1}"          # the address that it listens on; the cluster's internal one, say
: "${PORT:=5000}"
: "${NAMES:=$(hostname)}"       # what clients call this machine: names and addresses, no ports
: "${STORE:=postgresql+psycopg://mlflow@localhost/mlflow}"  # or sqlite:////absolute/path/mlflow.db
: "${ARTIFACTS:=$PWD/mlartifacts}"                          # or s3://bucket/path
: "${WORKERS:=2}"

# A request whose Host header is none of these is refused (403). They are compared with the port,
# which clients send unless it is the protocol's own: so both forms of each name. The loopback
# forms, with any port, are for `ssh -L`.
allowed="localhost,localhost:*,127.0.0.1,127.0.0.1:*"
for name in $NAMES; do
    allowed+=",$name,$name:$PORT"
done

export MLFLOW_DISABLE_TELEMETRY=true
# Jobs are for generative models, and more than double what a server takes.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION="${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}"

exec mlflow server --host "$BIND" --port "$PORT" --workers "$WORKERS" --allowed-hosts "$allowed" \
    --backend-store-uri "$STORE" --artifacts-destination "$ARTIFACTS" "$@"
