"""What compilers, uv and git print when an install fails. Each entry is held by a captured text in
tests/agent/causes/installs/. The first that matches wins: the specific before the general.

A full disk is recognised before all of these, since it then tells how much is free.
"""

from fleet_agent.causes.recognise import cause
from fleet_agent.causes.shared import SHARED_CAUSES

_COMPILERS = "install gcc, g++ and make on the host (on a Mac: xcode-select --install)"
_INDEX = (
    "check the host's network, or name a mirror with UV_DEFAULT_INDEX in hosts.yaml, or install with --offline FOLDER"
)
_GIT = "check the URL and the host's network, or install from a folder on the host with --offline FOLDER"

_BUILD_CAUSES = (
    cause(
        r'unable to find a build program corresponding to "(?P<detail>[^"]+)"',
        "build-tool-missing",
        "this host lacks the program that CMake builds with",
        "install make (or ninja) on the host",
    ),
    cause(
        r"CUDA Toolkit not found|Failed to find nvcc|Could not find nvcc|Could NOT find CUDAToolkit|"
        r"No CMAKE_CUDA_COMPILER",
        "cuda-missing",
        "there is no CUDA toolkit (nvcc) on this host",
        "install the CUDA toolkit on the host and set CUDA_HOME in hosts.yaml, or build for CPU",
    ),
    cause(
        r"nvcc fatal\s*: Unsupported gpu architecture '(?P<detail>[^']+)'",
        "cuda-mismatch",
        "the host's CUDA toolkit does not know the architecture of its GPU",
        "install a CUDA toolkit that knows it (an older one for an old card) and set CUDA_HOME in hosts.yaml",
    ),
    cause(
        r"unsupported GNU version! (?P<detail>gcc versions later than \d+ are not supported)",
        "cuda-mismatch",
        "the host's compiler is too new for its CUDA toolkit",
        "install that older gcc and name it with CC and CXX in hosts.yaml, or a newer CUDA toolkit",
    ),
    cause(
        r"No (?P<detail>CMAKE_(C|CXX)_COMPILER) could be found|(?P<detail2>CMAKE_(C|CXX)_COMPILER) not set|"
        r"is not a full path and was not found in the PATH|is not a full path to an existing compiler|"
        r"no developer tools were found|(?P<detail3>(gcc|g\+\+|cc|c\+\+)): (not found|command not found)|"
        r"No such file or directory: '(?P<detail4>gcc|g\+\+|cc|c\+\+|clang)'|"
        r"command '(?P<detail5>[^']*(gcc|g\+\+|cc|c\+\+|clang))' failed: No such file",
        "compiler-missing",
        "this host has no C and C++ compiler that works",
        _COMPILERS,
    ),
    cause(
        r"fatal error: Killed signal terminated program|fatal error: Killed|internal compiler error: Killed",
        "build-out-of-memory",
        "the compiler was killed, most often for want of memory",
        "free memory on the host, or build elsewhere and use it with --engine-path",
    ),
    cause(
        r"fatal error: '?(?P<detail>[^\s':]+)'?:? (No such file or directory|file not found)",
        "header-missing",
        "a header that the source needs is not on this host",
        "install the development package that brings it on the host",
    ),
    cause(
        r"cannot find -l(?P<detail>[^\s:]+)|library '(?P<detail2>[^']+)' not found",
        "library-missing",
        "a library that is linked is not on this host",
        "install the development package that brings it on the host",
    ),
)

_PYTHON_CAUSES = (
    cause(
        r"Hash mismatch for `(?P<detail>[^`]+)`",
        "hash-mismatch",
        "what the package index sent is not what was asked for",
        "try again; if it stays so, the mirror of this host (UV_DEFAULT_INDEX in hosts.yaml) is damaged",
    ),
    cause(
        r"No interpreter found for (?P<detail>Python [^\s,]+)|python-build-standalone",
        "python-missing",
        "the Python that this version needs is not on the host and could not be fetched",
        "install that Python on the host, or set UV_PYTHON_INSTALL_MIRROR for it in hosts.yaml",
    ),
    cause(
        r"does not satisfy (?P<detail>Python\S+)|requires a different Python: (?P<detail2>.+)",
        "python-not-allowed",
        "this version is not for the Python that it would run on",
        "deploy with another --backend-version, or install such a Python on the host",
    ),
    cause(
        r"invalid peer certificate|certificate verification failed|certificate verify failed",
        "certificate-refused",
        "the host does not trust the certificate of the server that it fetches from",
        "put the authority's certificate on the host and set SSL_CERT_FILE for it in hosts.yaml",
    ),
    cause(
        r"An index(?: URL)? \(\S+\) (?P<detail>could not be queried due to a lack of valid authentication|"
        r"returned a 40\d \w+ error)",
        "index-refused",
        "the package index of this host refuses it",
        "correct UV_DEFAULT_INDEX (with its credentials) for the host in hosts.yaml",
    ),
    cause(
        r"(?P<detail>\S+==\S+) has no (usable wheels|wheels with a matching [\w ]+tag)|"
        r"does(n't| not) have a source distribution or wheel for the current platform",
        "no-matching-wheel",
        "there is no wheel for this host's platform and Python",
        "deploy with another --backend-version, or use another backend on this host",
    ),
    cause(
        r"failed to fetch (branch or tag|branch, tag, or commit|commit|tag|branch) `(?P<detail>[^`]+)`"
        r"(?=[\s\S]*(couldn't find remote ref|not our ref))|Remote branch (?P<detail2>\S+) not found",
        "unknown-ref",
        "the repository has no such tag, branch or commit",
        "name one that exists: --backend-version TAG or a full commit",
    ),
)

_GIT_CAUSES = (
    cause(
        r"Git executable not found",
        "tool-missing",
        "git is not on this host",
        "install git on the host, or name its path under `tools` in hosts.yaml",
    ),
    cause(
        r"unable to access '(?P<detail>[^']+)': (Could not resolve host|Failed to connect|Couldn't connect)|"
        r"(?P<detail2>ssh: (connect to host|Could not resolve hostname) .+)",
        "git-unreachable",
        "the git server cannot be reached from this host",
        _GIT,
    ),
    cause(
        r"could not read (Username|Password) for '(?P<detail>[^']+)'|repository '(?P<detail2>[^']+)' not found|"
        r"Permission denied \(publickey|Authentication failed for '(?P<detail3>[^']+)'|"
        r"(?P<detail4>\S+) not valid: is this a git repository",
        "git-refused",
        "there is no such git repository, or this user may not read it",
        "check the URL, and that this user can reach it from the host without a password",
    ),
)

INSTALL_CAUSES = (
    *_BUILD_CAUSES,
    *SHARED_CAUSES,
    *_PYTHON_CAUSES,
    *_GIT_CAUSES,
    cause(
        r"Failed to fetch: `?(?P<detail>[^`\s]+)|(?P<detail2>dns error|tcp connect error)|"
        r"error sending request for url",
        "index-unreachable",
        "the package index cannot be reached from this host",
        _INDEX,
    ),
    cause(
        r"there is no version of (?P<detail>[^\s,]+)|(?P<detail2>\S+) was not found in the (package registry|provided)",
        "not-on-index",
        "the package index (or the offline folder) has no such package",
        "check the version, and that the host's index or folder has it",
    ),
    cause(
        r"your requirements are unsatisfiable",
        "requirements-conflict",
        "the packages that were asked for exclude each other",
        "deploy with another --backend-version",
    ),
    cause(
        r"Failed to build `(?P<detail>[^`]+)`|Failed to download and build `(?P<detail2>[^`]+)`",
        "package-build-failed",
        "a package has no wheel for this host, and building it failed",
        "see its last lines; deploy with another --backend-version",
    ),
)
