.PHONY: proto check test lock
# Generated code is committed; .ci/run regenerates it and fails on a difference.
proto:
	cd proto && uv run --no-sync python -m grpc_tools.protoc -I . --python_out=. --mypy_out=quiet:. fleet_proto/v1/*.proto
	cd proto && uv run --no-sync python -m grpc_tools.protoc -I . --grpc_python_out=. --mypy_grpc_out=quiet:. \
	    fleet_proto/v1/agent.proto fleet_proto/v1/controller.proto

check:
	uv run --no-sync python deploy/check.py

test:
	uv run pytest -n auto

# The pins of record: newest versions into pyproject.toml and deploy/agent-requirements.txt.
lock:
	uv run --no-sync python deploy/lock.py
