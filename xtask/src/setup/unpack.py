"""Unpack the part of a PyTorch wheel that CPU-only C++ needs: unpack.py WHEEL FOLDER."""
import os
import shutil
import sys
import zipfile

# Libraries that only CUDA or Python needs; every other one in the wheel is (or is needed by) libtorch_cpu.
LEFT_OUT = ("libtorch_cuda", "libc10_cuda", "libcaffe2_nvrtc", "libtorch_nvshmem", "libtorch_python", "libshm",
            "libtorch_global_deps")


def destination(name):
    """Where an entry of the wheel goes, relative to FOLDER; None if it stays in the wheel."""
    parts = name.split("/")
    base = parts[-1]
    if not base or ".." in parts:
        return None
    is_library = parts[:2] == ["torch", "lib"] and len(parts) == 3 or parts[0] == "torch.libs"
    if is_library and ".so" in base and not base.startswith(LEFT_OUT):
        return os.path.join("lib", base)
    if parts[:2] == ["torch", "include"]:
        return os.path.join(*parts[1:])
    if "licenses" in parts and base in ("LICENSE", "NOTICE"):
        return base
    return None


def main(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            relative = destination(entry.filename)
            if relative is None:
                continue
            path = os.path.join(folder, relative)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(entry) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)


main(*sys.argv[1:])
