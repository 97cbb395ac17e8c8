"""Causes that servers and installs have in common."""

from fleet_agent.causes.recognise import cause

SHARED_CAUSES = (
    cause(
        r"error while loading shared libraries: (?P<detail>[^:\n]+)|Library not loaded: (?P<detail2>\S+)|"
        r"ImportError: (?P<detail3>lib[^:\n]+\.so[^:\n]*): cannot open shared object file",
        "library-missing",
        "this host lacks a library that the program needs",
        "install the package that brings it on the host, or let fleet build the backend there",
        permanent=True,
    ),
    cause(
        r"version `(?P<detail>(GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found",
        "built-for-newer-system",
        "the program was built for a newer system than this host's",
        "let fleet build the backend on this host: leave --engine-path and --offline out",
        permanent=True,
    ),
)
