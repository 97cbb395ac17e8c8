.PHONY: proto check test lock
# Generated code is committed; .ci/run regenerates it and fails on a difference.
proto:
	cd proto && uv run --no-sync python -m grpc_tools.protoc -I . --python_out=. --mypy_out=quiet:. fleet_proto/v1/*.proto
	cd proto && uv run --no-sync python -m grpc_tools.protoc -I . --grpc_python_out=. --mypy_grpc_out=quiet:. \
	    fleet_proto/v1/agent.proto fleet_proto/v1/controller.proto

check:
	uv run --no-sync ruff check . && uv run --no-sync ruff format --check .
	uv run --no-sync mypy && uv run --no-sync lint-imports

test:
	uv run pytest
