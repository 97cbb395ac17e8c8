"""The JSON schema of hosts.yaml, for editors: `python -m fleet_inventory.schema` writes docs/hosts.schema.json."""

import json
import sys
from pathlib import Path

from fleet_inventory.host_file import HostsFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEFAULT_PATH = Path("docs/hosts.schema.json")


def hosts_schema() -> dict[str, object]:
    """The schema as plain data. It knows the shape, not what depends on several keys together."""
    return {"$schema": DIALECT} | HostsFile.model_json_schema() | {"title": "fleet hosts.yaml"}


def schema_text() -> str:
    """The schema as it is committed."""
    return json.dumps(hosts_schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the schema to the path given, or to docs/hosts.schema.json of the current folder."""
    path = Path(arguments[0]) if arguments else _DEFAULT_PATH
    if not path.parent.is_dir():
        print(f"{path.parent}: no such folder; run this in the root of the repository, or name a file", file=sys.stderr)
        return 2
    path.write_text(schema_text(), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
