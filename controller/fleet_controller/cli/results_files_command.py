"""What `fleet results import` and `fleet results export` do."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet_controller.cli.client import call, connected_controller
from fleet_controller.cli.failures import UsageFailure
from fleet_controller.cli.output import print_json, print_table
from fleet_controller.cli.output_file import write_output
from fleet_controller.cli.results_list_command import Fetched, ResultFilter, fetch
from fleet_controller.results.exporting import csv_text, json_text, markdown_text
from fleet_controller.service.client import LARGEST_MESSAGE_BYTES
from fleet_proto.v1 import controller_pb2

# The request holds all files, and a little more.
LARGEST_IMPORT_BYTES = LARGEST_MESSAGE_BYTES - 1024 * 1024


@dataclass(frozen=True)
class ImportOptions:
    """What the files do not tell, under the names of the request's fields."""

    host: str
    chip: str
    model: str
    quantization: str
    backend: str
    backend_version: str
    client_version: str


def run_import(files: Sequence[str], said: ImportOptions, as_json: bool) -> None:
    """All files in one transaction; exit code 2 where something is not understood."""
    contents = [controller_pb2.ImportFile(name=_name(path), content=_content(path)) for path in files]
    if sum(len(file.content) for file in contents) > LARGEST_IMPORT_BYTES:
        raise UsageFailure(
            f"these files are larger than {LARGEST_IMPORT_BYTES // 1024**2} MiB together", "import them one by one"
        )
    request = controller_pb2.ImportResultsRequest(files=contents, **asdict(said))
    reply = call(_import(request))
    if as_json:
        print_json({"files": [{"name": file.name, "added": file.added, "known": file.known} for file in reply.files]})
        return
    rows = [(file.name, str(file.added), str(file.known)) for file in reply.files]
    print_table(("FILE", "ADDED", "ALREADY THERE"), rows)


async def _import(request: controller_pb2.ImportResultsRequest) -> controller_pb2.ImportResultsReply:
    async with connected_controller() as controller:
        reply: controller_pb2.ImportResultsReply = await controller.ImportResults(request)
        return reply


def _name(path: str) -> str:
    return "stdin" if path == "-" else Path(path).name


def _content(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageFailure(f"{path} cannot be read: {error.strerror}", "give a file that you may read") from None


FORMATS: dict[str, Callable[[Fetched], str]] = {
    "csv": lambda fetched: csv_text(entry.result for entry in fetched.entries),
    "json": lambda fetched: json_text(
        [entry.result for entry in fetched.entries], fetched.runs, fetched.device_samples
    ),
    "md": lambda fetched: markdown_text([entry.result for entry in fetched.entries], fetched.runs),
}


def run_export(wanted: ResultFilter, form: str, output: str) -> None:
    """Write to stdout, or to a file that is replaced as a whole."""
    if form not in FORMATS:
        raise UsageFailure(f"--format {form}: there is no such format", f"one of: {', '.join(FORMATS)}")
    request = wanted.request()
    request.with_runs = form != "csv"
    fetched = call(fetch(request))
    text = FORMATS[form](fetched)
    if not output:
        sys.stdout.write(text)
        return
    write_output(output, text)
    print(f"{len(fetched.entries)} results are in {output}", file=sys.stderr)
