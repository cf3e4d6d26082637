"""The doctor judges readings by tables; what cannot be read is unknown, never ok."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import doctor, vitals
from benchmarks.doctor import Judged
from benchmarks.pillow import Pillow, active_pillow, decode_rates, owner
from benchmarks.vitals import Clock, Device, Disk, Drivers, Gtt, Hardware, Torch, Unread
from tests.kinds import Jpeg

ROOT = Path(__file__).resolve().parents[2]
NOTHING = Hardware((), False, False)
HALO = Hardware(("gfx1151",), True, False)
LOCKED_HALO = Hardware(("gfx1151",), False, False)
NVIDIA = Hardware((), False, True)
CPU = Torch("2.13.0+cpu", "0.28.0+cpu")
ROCM = Torch(
    "2.10.0+rocm7.2.4",
    "0.25.0+rocm7.2.4",
    hip="7.2.53211",
    architectures=("gfx942", "gfx1151"),
    devices=(Device("Radeon 8060S", "gfx1151"),),
)
CUDA = Torch(
    "2.13.0+cu130",
    "0.28.0+cu130",
    cuda="13.0",
    architectures=("sm_80", "sm_90", "sm_120", "compute_120"),
    devices=(Device("RTX 3090", "sm_86"),),
)
GB = 10**9


def state(judged: Judged) -> str:
    """The state; whatever is wrong comes with a cure on one line, and what is well with none."""
    found, value, cure = judged
    assert value
    assert "\n" not in value + cure
    assert bool(cure) == (found in ("warning", "problem"))
    return found


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        (CPU, "ok"),
        (ROCM, "ok"),
        (Torch("2.9.1", "0.24.1"), "ok"),
        (Torch("2.13.0+cpu", "0.28.0+cu130"), "warning"),
        (Torch("2.10.0+rocm7.2.4", "0.25.0+82df5f5"), "ok"),  # a commit is no vendor
        (CPU._replace(note="operators do not load"), "warning"),
        (Torch("2.13.0+cpu", "0.27.0+cpu"), "problem"),
        (Torch("3.0.0", "1.0.0"), "unknown"),
        (Torch(died="ImportError: libamdhip64.so.7"), "problem"),
    ],
)
def test_torch_and_torchvision_are_of_one_release_and_one_build(torch: Torch, expected: str) -> None:
    assert state(doctor.judge_torch(torch)) == expected


@pytest.mark.parametrize(
    ("torch", "hardware", "expected", "word"),
    [
        (CPU, NOTHING, "ok", "CPU"),
        (ROCM, HALO, "ok", "gfx1151"),
        (CUDA, NVIDIA, "ok", "sm_86"),
        (CPU, HALO, "warning", "another device"),
        (CPU, NVIDIA, "warning", "another device"),
        (ROCM._replace(devices=()), HALO, "problem", "sees no device"),
        (ROCM._replace(devices=()), LOCKED_HALO, "problem", "/dev/kfd"),
        (ROCM._replace(devices=(), died="SIGSEGV"), HALO, "problem", "SIGSEGV"),
        (ROCM._replace(died="SIGSEGV"), HALO, "problem", "SIGSEGV"),
        (ROCM._replace(architectures=("gfx942",)), HALO, "problem", "built for gfx942"),
        (Torch(died="ImportError"), HALO, "unknown", "does not load"),
    ],
)
def test_a_gpu_is_seen_and_torch_is_built_for_it(
    torch: Torch, hardware: Hardware, expected: str, word: str
) -> None:
    judged = doctor.judge_gpu(torch, hardware)
    assert state(judged) == expected
    assert word in judged[1]


@pytest.mark.parametrize(
    ("architecture", "built", "runs"),
    [
        ("sm_86", ["sm_80"], True),
        ("sm_80", ["sm_86"], False),
        ("sm_90", ["sm_80"], False),
        ("sm_90", ["sm_90a"], True),
        ("sm_120", ["sm_90", "compute_90"], True),
        ("sm_75", ["compute_90"], False),
        ("gfx1151", ["gfx1100"], False),
        ("gfx1151", ["gfx11-generic"], True),
        ("gfx90a", ["gfx90a"], True),
        ("gfx90a", [], False),
    ],
)
def test_code_runs_on_later_minor_versions_and_in_its_family(
    architecture: str, built: list[str], runs: bool
) -> None:
    assert doctor.supported(architecture, built) == runs


@pytest.mark.parametrize(
    ("hip", "expected"),
    [
        ("6.2.41133", "problem"),
        ("7.1.52802", "problem"),
        ("7.2.53211", "ok"),
        ("7.10.0", "problem"),
        ("7.12.0", "ok"),
        ("7.13.0", "unknown"),
        ("8.0.0", "unknown"),
        ("", "unknown"),
    ],
)
def test_rocm_on_strix_halo_is_judged_by_the_table(hip: str, expected: str) -> None:
    judged = doctor.judge_rocm(ROCM._replace(hip=hip), HALO)
    assert state(judged) == expected
    assert ("https://" in judged[1]) == (expected in ("ok", "problem"))


def test_rocm_on_another_chip_is_unknown() -> None:
    radeon = Torch("2.10.0", "0.25.0", hip="7.2.53211", devices=(Device("RX 7900", "gfx1100"),))
    assert doctor.judge_rocm(radeon, Hardware(("gfx1100",), True, False))[0] == "unknown"


def test_the_table_of_releases_has_no_gap() -> None:
    rows = doctor.STRIX_HALO_ROCM
    assert [row.first for row in rows[1:]] == [row.end for row in rows[:-1]]


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("6.18.4-200.fc43.x86_64", "ok"),
        ("6.18.3-arch1-1", "warning"),
        ("6.19.0-3-generic", "ok"),
        ("6.17.0-19-generic", "ok"),
        ("6.17.0-18-generic", "warning"),
        ("6.14.0-1018-oem", "ok"),
        ("6.14.0-1017-oem", "warning"),
        ("6.17.0-1005-oem", "ok"),
        ("7.0.0", "ok"),
        ("unreadable", "warning"),
    ],
)
def test_the_kernel_has_what_strix_halo_needs(kernel: str, expected: str) -> None:
    assert state(doctor.judge_driver(Drivers(kernel, ""), ROCM, HALO)) == expected


@pytest.mark.parametrize(
    ("driver", "cuda", "expected"),
    [
        ("580.65.06", "13.0", "ok"),
        ("570.86.10", "13.0", "problem"),
        ("570.86.10", "12.8", "ok"),
        ("", "13.0", "unknown"),
        ("580.65.06", "", "unknown"),
        ("580.65.06", "14.0", "unknown"),
    ],
)
def test_nvidias_driver_is_new_enough_for_torchs_cuda(driver: str, cuda: str, expected: str) -> None:
    judged = doctor.judge_driver(Drivers("6.8.0", driver), CUDA._replace(cuda=cuda), NVIDIA)
    assert state(judged) == expected


@pytest.mark.parametrize(
    ("pillow", "python", "expected"),
    [
        (Pillow("pillow", "13.0.0", False, "libjpeg-turbo 3.2.0"), (3, 12), "ok"),
        (Pillow("pillow", "12.3.0", False, "libjpeg-turbo 3.1.2"), (3, 12), "problem"),
        (Pillow("pillow", "12.3.0", False, "libjpeg-turbo 3.1.2"), (3, 10), "warning"),
        (Pillow("pillow-simd", "12.1.1.post0", True, "libjpeg-turbo 2.1.5"), (3, 12), "warning"),
    ],
)
def test_a_pillow_that_lacks_the_fix_says_so(pillow: Pillow, python: tuple[int, int], expected: str) -> None:
    judged = doctor.judge_pillow(pillow, python)
    assert state(judged) == expected
    assert ("CVE-2026-112403" in judged[1]) == (expected != "ok")


@pytest.mark.parametrize(
    ("version", "installed", "name"),
    [
        ("13.0.0", {"pillow": "13.0.0"}, "pillow"),
        ("12.1.1.post0", {"pillow-simd": "12.1.1.post0"}, "pillow-simd"),
        ("12.1.1.post0", {"pillow": "13.0.0", "pillow-simd": "12.1.1.post0"}, "pillow-simd"),
        ("13.0.0", {"pillow": "13.0.0", "pillow-simd": "12.1.1.post0"}, "pillow"),
        ("13.0.0", {}, ""),
    ],
)
def test_of_two_pillows_the_one_whose_files_are_there_is_named(
    version: str, installed: dict[str, str], name: str
) -> None:
    assert owner(version, installed) == name


def test_the_active_pillow_is_the_one_that_is_imported() -> None:
    import PIL

    found = active_pillow()
    assert found.version == PIL.__version__
    assert found.name in ("pillow", "pillow-simd")
    assert found.jpeg.startswith("libjpeg")
    assert found.version in found.text()


def test_decoders_are_measured_on_the_photos_at_hand(jpeg: Jpeg) -> None:
    rates = decode_rates([jpeg(number) for number in range(3)])
    assert set(rates) == {"Pillow", "simplejpeg"}
    assert min(rates.values()) > 0
    assert state(doctor.judge_rates(rates)) == "ok"


def test_a_module_that_was_not_built_is_named() -> None:
    judged = doctor.judge_extensions({"train._jpeg": "", "train._pixels": "No module named …"})
    assert state(judged) == "warning"
    assert "train._pixels" in judged[1]
    assert "train._jpeg" not in judged[1]
    assert state(doctor.judge_extensions({"train._jpeg": ""})) == "ok"


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        (doctor.judge_shm(64 * 2**20), "warning"),
        (doctor.judge_shm(8 * GB), "ok"),
        (doctor.judge_files(64), "problem"),
        (doctor.judge_files(512), "warning"),
        (doctor.judge_files(1024), "ok"),
        (doctor.judge_files(-1), "ok"),
        (doctor.judge_space(Disk(9 * GB, 1000 * GB)), "warning"),
        (doctor.judge_space(Disk(500 * GB, 1000 * GB)), "ok"),
        (doctor.judge_speed(80e6), "warning"),
        (doctor.judge_speed(2e9), "ok"),
        (doctor.judge_gtt(Gtt(62 * GB, GB, 125 * GB), HALO), "ok"),
        (doctor.judge_gtt(Gtt(15 * GB, GB, 125 * GB), HALO), "warning"),
        (doctor.judge_gtt(Gtt(15 * GB, 24 * GB, 64 * GB), Hardware(("gfx1100",), True, False)), "unknown"),
        (doctor.judge_clock(Clock(("performance",), "acpi-cpufreq", "")), "ok"),
        (doctor.judge_clock(Clock(("powersave",), "acpi-cpufreq", "")), "warning"),
        (doctor.judge_clock(Clock(("powersave",), "intel_pstate", "")), "ok"),
        (doctor.judge_clock(Clock(("powersave",), "amd-pstate-epp", "auto")), "ok"),
        (doctor.judge_clock(Clock(("schedutil",), "amd-pstate", "low")), "warning"),
        (doctor.judge_override(None, HALO), "ok"),
        (doctor.judge_override("11.0.0", HALO), "problem"),
        (doctor.judge_override("11.5.1", HALO), "problem"),
        (doctor.judge_override("", HALO), "problem"),
        (doctor.judge_override("", NOTHING), "warning"),
        (doctor.judge_override("10.3.0", Hardware(("gfx1031",), True, False)), "warning"),
        (doctor.judge_fused(None, ROCM), "ok"),
        (doctor.judge_fused("2", ROCM), "warning"),
        (doctor.judge_fused("2", CUDA), "ok"),
        (doctor.judge_threads(None, 8), "ok"),
        (doctor.judge_threads("8", 8), "ok"),
        (doctor.judge_threads("16", 8), "warning"),
        (doctor.judge_threads("0", 8), "warning"),
        (doctor.judge_threads("many", 8), "warning"),
    ],
)
def test_limits_clocks_and_the_environment(judged: Judged, expected: str) -> None:
    assert state(judged) == expected


def unreadable() -> int:
    raise Unread("not here")


def test_what_cannot_be_read_is_unknown_with_the_reason() -> None:
    finding = doctor.check("anything", unreadable, doctor.judge_shm)
    assert (finding.state, finding.value) == ("unknown", "not here")


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ("cpu_cores_count 0\ngfx_target_version 110501\nsimd_count 80\n", "gfx1151"),
        ("gfx_target_version 90010\n", "gfx90a"),
        ("gfx_target_version 0\n", ""),
        ("cpu_cores_count 32\n", ""),
    ],
)
def test_the_kernels_number_of_a_chip_becomes_its_name(properties: str, name: str) -> None:
    assert vitals.architecture(properties) == name


def test_a_torch_that_dies_after_it_told_what_it_is_keeps_what_it_told() -> None:
    first = {"version": "2.10.0", "torchvision": "0.25.0", "note": "", "hip": "7.1.5", "cuda": ""}
    second = {**first, "architectures": ["gfx1151"], "devices": [["Radeon", "gfx1151"]]}
    early = vitals.parse_torch(f"a warning\n{json.dumps(first)}\n", -11, "")
    assert (early.version, early.hip, early.died, early.devices) == ("2.10.0", "7.1.5", "SIGSEGV", ())
    late = vitals.parse_torch(f"{json.dumps(first)}\n{json.dumps(second)}\n", 1, "Traceback\nHIP error\n")
    assert (late.devices, late.died) == ((Device("Radeon", "gfx1151"),), "HIP error")
    assert vitals.parse_torch("", 1, "ImportError: torch").died == "ImportError: torch"


def test_a_process_that_is_killed_is_told_from_one_that_ends_well() -> None:
    facts = vitals.torch_facts()
    import torch

    assert (facts.version, facts.died) == (torch.__version__, "")


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_an_apus_files_are_read_where_the_kernel_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, cpu = "class/drm/card1/device", "devices/system/cpu/cpu0/cpufreq"
    plant(
        tmp_path,
        {
            "class/kfd/kfd/topology/nodes/0/properties": "gfx_target_version 0\n",
            "class/kfd/kfd/topology/nodes/1/properties": "gfx_target_version 110501\n",
            f"{card}/mem_info_gtt_total": "66000000000\n",
            f"{card}/mem_info_vram_total": "536870912\n",
            f"{card}/power_dpm_force_performance_level": "auto\n",
            f"{cpu}/scaling_governor": "powersave\n",
            f"{cpu}/scaling_driver": "amd-pstate-epp\n",
            "module/nvidia/version": "580.65.06\n",
        },
    )
    monkeypatch.setattr(vitals, "SYS", tmp_path)
    assert vitals.hardware().amd == ("gfx1151",)
    assert vitals.gtt()[:2] == (66_000_000_000, 536_870_912)
    assert vitals.clock() == Clock(("powersave",), "amd-pstate-epp", "auto")
    assert vitals.drivers().nvidia == "580.65.06"


def test_a_machine_without_those_files_is_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "SYS", tmp_path)
    monkeypatch.setattr(vitals, "DEV", tmp_path)
    assert vitals.hardware() == NOTHING
    for read in (vitals.gtt, vitals.clock):
        with pytest.raises(Unread, match="no "):
            read()
    assert doctor.check("/dev/shm", vitals.shared_memory, doctor.judge_shm).state == "unknown"


def test_the_disk_is_read_past_the_page_cache_or_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unread, match="no shard"):
        vitals.direct_read(tmp_path)
    (tmp_path / "shard-000000.tar").write_bytes(os.urandom(9 * 2**20 + 512))
    finding = doctor.check("disk speed", lambda: vitals.direct_read(tmp_path), doctor.judge_speed)
    refused = finding.state == "unknown" and "Invalid argument" in finding.value  # as tmpfs does
    assert refused or "MB/s" in finding.value


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.cli import main; main()", "doctor", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_command_tells_people_and_programs_and_ends_by_what_it_found(packed: Path) -> None:
    done = run("--shards", packed / "train", "--json", OMP_NUM_THREADS="9999")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["OMP_NUM_THREADS"]["state"] == "warning"
    assert "simplejpeg" in findings["JPEG decoders"]["value"]
    assert done.returncode == any(finding["state"] == "problem" for finding in findings.values())
    limited = ["sh", "-c", 'ulimit -n 100 && exec "$@"', "sh"]
    command = [*limited, sys.executable, "-c", "from benchmarks.cli import main; main()", "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "ulimit -n 4096" in done.stderr
    assert done.stdout == ""
