"""What the probes make of the texts they read. Each text says where it is from."""

import pytest

from fleet_agent.probes import apple, cpu, disk, engines, memory, system, tools
from fleet_agent.probes.model import AppleFacts, CpuFacts, MemoryFacts

GIB = 1024**3

# Captured on Linux 6.18, x86_64; shortened to the lines and flags that are read.
CPUINFO_X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
siblings\t: 2
cpu cores\t: 2
flags\t\t: fpu vme sse4_2 avx f16c fma avx2 avx512f avx512_vnni amx_tile amx_int8
bogomips\t: 5600.00

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu vme sse4_2 avx f16c fma avx2 avx512f avx512_vnni amx_tile amx_int8
"""
# Written from the kernel's arch/arm64/kernel/cpuinfo.c; not captured on a machine of ours.
CPUINFO_ARM = """processor\t: 0
BogoMIPS\t: 2000.00
Features\t: fp asimd evtstrm aes sha2 crc32 asimddp sve i8mm bf16
CPU implementer\t: 0x41
"""


def test_cpu_of_linux_on_x86() -> None:
    facts = cpu.parse_linux(CPUINFO_X86, ["0-1\n", "0-1\n", "2-3\n", "2-3\n"], 4, 0.5, "x86_64")
    assert facts == CpuFacts(
        model="Intel(R) Xeon(R) Processor",
        physical_cores=2,
        logical_cores=4,
        load_average_1m=0.5,
        features=("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"),
    )


def test_cpu_of_linux_on_arm_names_features_as_other_hosts_do() -> None:
    facts = cpu.parse_linux(CPUINFO_ARM, [], None, 0.0, "aarch64")
    assert facts.model == "aarch64"
    assert facts.physical_cores is None and facts.logical_cores is None
    assert facts.features == ("neon", "dotprod", "i8mm", "bf16", "sve")


def test_cpu_of_a_mac() -> None:
    # Written from the documented names of sysctl(3); not captured on a Mac of ours.
    text = """machdep.cpu.brand_string: Apple M4
hw.physicalcpu: 10
hw.logicalcpu: 10
hw.optional.arm.AdvSIMD: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_SME2p1: 0
sysctl: unknown oid 'hw.optional.arm.FEAT_X'
"""
    assert cpu.parse_mac_sysctl(text, 1.5) == CpuFacts("Apple M4", 10, 10, 1.5, ("neon", "dotprod", "bf16"))


# Captured on Linux 6.18, shortened.
MEMINFO = """MemTotal:       24684092 kB
MemFree:        20155928 kB
MemAvailable:   24175328 kB
SwapTotal:             0 kB
SwapFree:              0 kB
HugePages_Total:       0
"""


def test_memory_of_linux() -> None:
    facts = memory.parse_meminfo(MEMINFO)
    assert facts == MemoryFacts(24684092 * 1024, 24175328 * 1024, 0, 0)
    assert memory.parse_meminfo("") == MemoryFacts(None, None, None, None)


def test_memory_within_a_containers_limit() -> None:
    host = MemoryFacts(64 * GIB, 60 * GIB, 0, 0)
    limited = memory.within_limit(host, f"{16 * GIB}\n", f"{10 * GIB}\n", f"anon 1\ninactive_file {2 * GIB}\n")
    assert limited == MemoryFacts(16 * GIB, 8 * GIB, 0, 0)
    assert memory.within_limit(host, "max\n", "1", None) == host
    assert memory.within_limit(host, None, None, None) == host
    assert memory.within_limit(host, str(128 * GIB), "1", None) == host
    scarce = MemoryFacts(64 * GIB, 3 * GIB, 0, 0)
    assert memory.within_limit(scarce, str(16 * GIB), "0", None).available_bytes == 3 * GIB


# Captured on Linux 6.18; the nfs4 line as proc(5) and a lab's mount describe it, with a blank in the mount point.
MOUNTINFO = r"""21 1 254:0 / / rw,relatime - ext4 /dev/root rw
22 21 0:20 / /proc rw,nosuid - proc proc rw
50 21 0:44 / /home rw,relatime shared:1 - nfs4 filer:/export/home rw,vers=4.2
51 21 0:45 / /data/my\040models rw - xfs /dev/nvme0n1p1 rw
52 21 0:46 / /data/my\040models rw - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("path", "filesystem"),
    [
        ("/", "ext4"), ("/var/tmp", "ext4"), ("/home", "nfs4"), ("/home/alice/x", "nfs4"), ("/homeless", "ext4"),
        ("/data/my models/a.gguf", "overlay"),
    ],
)  # fmt: skip
def test_the_file_system_is_that_of_the_nearest_mount_above(path: str, filesystem: str) -> None:
    assert disk.find_mount(disk.parse_mountinfo(MOUNTINFO), path) == filesystem


def test_mounts_of_a_mac() -> None:
    # Written from mount(8)'s form on macOS; not captured on a Mac of ours.
    text = """/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse)
filer:/export/home on /Users/shared home (nfs, nodev, nosuid)
"""
    mounts = disk.parse_mac_mount(text)
    assert disk.find_mount(mounts, "/Users/shared home/x") == "nfs"
    assert disk.find_mount(mounts, "/tmp") == "apfs"


def test_network_file_systems() -> None:
    assert all(map(disk.is_network_filesystem, ("nfs", "nfs4", "cifs", "smbfs", "fuse.sshfs", "lustre")))
    assert not any(map(disk.is_network_filesystem, ("ext4", "xfs", "apfs", "overlay", "tmpfs", "fuseblk")))


def test_names_of_systems() -> None:
    # The first from Ubuntu 24.04's /etc/os-release, shortened; the second from Arch's, which has no VERSION_ID.
    assert (
        system.parse_os_release('PRETTY_NAME="Ubuntu 24.04.1 LTS"\nNAME="Ubuntu"\nVERSION_ID="24.04"\n')
        == "Ubuntu 24.04"
    )
    assert system.parse_os_release('NAME="Arch Linux"\nPRETTY_NAME="Arch Linux"\nID=arch\n') == "Arch Linux"
    assert system.parse_os_release("") is None
    # Written from sw_vers(1).
    assert system.parse_sw_vers("ProductName:\t\tmacOS\nProductVersion:\t\t15.3\nBuildVersion:\t\t24D60\n") == {
        "ProductName": "macOS",
        "ProductVersion": "15.3",
        "BuildVersion": "24D60",
    }


def test_musl_and_boot_times() -> None:
    assert system.parse_musl_version("musl libc (x86_64)\nVersion 1.2.5\nDynamic Program Loader\n") == "musl 1.2.5"
    assert system.parse_musl_version("") is None
    assert system.parse_mac_boot_time("{ sec = 1731000000, usec = 12 } Thu Nov  7 18:20:00 2024") == 1731000000
    assert system.parse_mac_boot_time("") is None


# Written from Apple's documented keys and public reports of an M4; not captured on a Mac of ours.
M4_SYSCTL = """machdep.cpu.brand_string: Apple M4
hw.memsize: 17179869184
hw.perflevel0.physicalcpu: 4
hw.perflevel1.physicalcpu: 6
iogpu.wired_limit_mb: 0
"""
M4_DISPLAYS = """{"SPDisplaysDataType": [
  {"_name": "Apple M4", "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
   "spdisplays_vendor": "sppci_vendor_Apple", "sppci_bus": "spdisplays_builtin", "sppci_cores": "10",
   "sppci_device_type": "spdisplays_gpu", "sppci_model": "Apple M4"}
]}"""


def test_an_m4() -> None:
    assert apple.assemble(M4_SYSCTL, M4_DISPLAYS) == AppleFacts(
        chip="Apple M4",
        gpu_cores=10,
        unified_memory_bytes=16 * GIB,
        metal_working_set_bytes=16 * GIB * 2 // 3,
        performance_cores=4,
        efficiency_cores=6,
    )


def test_a_mac_that_tells_little() -> None:
    text = "sysctl: unknown oid 'iogpu.wired_limit_mb'\nhw.memsize: 68719476736\n"
    assert apple.assemble(text, "") == AppleFacts(unified_memory_bytes=64 * GIB, metal_working_set_bytes=48 * GIB)
    assert apple.assemble("", '{"SPDisplaysDataType": []}') == AppleFacts()
    assert apple.assemble("", "[]") == AppleFacts()


def test_what_metal_may_use() -> None:
    # 11453 MB is what llama.cpp printed as recommendedMaxWorkingSetSize on a 16 GB M4 (ggml-org/ci).
    assert (apple.metal_working_set_bytes(16 * GIB, 0) or 0) // 10**6 == 11453
    assert apple.metal_working_set_bytes(16 * GIB, 14336) == 14336 * 1024 * 1024
    assert apple.metal_working_set_bytes(None, None) is None


@pytest.mark.parametrize(
    ("name", "text", "version"),
    [
        ("git", "git version 2.39.5\n", "2.39.5"),
        ("cmake", "cmake version 3.25.1\n\nCMake suite maintained", "3.25.1"),
        ("ninja", "1.11.1\n", "1.11.1"),
        ("make", "GNU Make 4.3\nBuilt for x86_64-pc-linux-gnu\n", "4.3"),
        ("uv", "uv 0.13.9\n", "0.13.9"),
        (
            "nvcc",
            "Cuda compilation tools, release 12.4, V12.4.131\nBuild cuda_12.4.r12.4/compiler.3409\n",
            "12.4",
        ),
        ("python3", "Python 3.11.7\n", "3.11.7"),
        ("git", None, None),
        ("git", "command not found", None),
    ],
)
def test_versions_of_tools(name: str, text: str | None, version: str | None) -> None:
    assert tools.parse_version(name, text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("version: 0.6.0-dev (build 0, commit unknown)\nbuilt with GNU 12.2.0 for Linux x86_64\n", "0.6.0-dev"),
        ("version: 0.6.0-dev (build 11434, commit abcdef0)\n", "b11434"),
        ("version: 6543 (abcdef0)\nbuilt with cc for x86_64-linux-gnu\n", "b6543"),
        ("ggml_cuda_init: found 1 CUDA devices:\nversion: 6543 (abcdef0)\n", "b6543"),
        ("", None),
    ],
)
def test_versions_of_llama_server(text: str, version: str | None) -> None:
    # The first is what the binaries of our CI print, the third what older releases print.
    assert engines.parse_llama_version(text) == version
