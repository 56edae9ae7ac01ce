"""Builds the native library with CMake; everything declarative is in pyproject.toml.

Without CMake, Ninja or a compiler the package installs all the same, without the native library:
``r21d_ops`` then runs on its ``eager`` backend and says why. ``R21D_NATIVE=0`` asks for that,
``R21D_NATIVE=1`` makes a failing build an error. ``R21D_CUDA=auto|0|1`` decides about CUDA.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
BUILD = ROOT / "build" / "native"
IN_PLACE = ROOT / "r21d_ops" / "_native.so"


class NativeLibrary(Extension):
    """The CMake target; it has no Python sources and no Python version in its name."""

    def __init__(self) -> None:
        super().__init__("r21d_ops._native", sources=[])


class CMakeBuild(build_ext):
    """Runs CMake instead of the compiler."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        wanted = os.environ.get("R21D_NATIVE", "auto")
        if wanted not in ("auto", "0", "1"):
            raise SystemExit(f"R21D_NATIVE must be auto, 0 or 1, not {wanted!r}")
        # A library of an earlier build must not pass for this one's.
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        if self.editable_mode:
            IN_PLACE.unlink(missing_ok=True)
        if wanted == "0":
            self._leave_out(ext, "R21D_NATIVE=0")
            return
        try:
            self._build(ext)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            if wanted == "1":
                raise
            self._leave_out(ext, str(error))

    def _leave_out(self, ext: Extension, reason: str) -> None:
        ext.optional = True  # so that nothing asks for the missing file
        print(f"r21d: installing without the native library: {reason}", file=sys.stderr)

    def _build(self, ext: Extension) -> None:
        torch = importlib.util.find_spec("torch")
        if torch is None or not torch.submodule_search_locations:
            raise RuntimeError("torch is not installed here (use --no-build-isolation)")
        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                raise RuntimeError(f"{tool} is not on PATH (`pip install {tool}`)")
        BUILD.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(BUILD),
            "-G",
            "Ninja",
            f"-DR21D_TORCH_DIR={torch.submodule_search_locations[0]}",
            f"-DR21D_CUDA={os.environ.get('R21D_CUDA', 'auto')}",
            # The build folder outlives an isolated build environment and the Ninja in it.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(BUILD)], check=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced as a whole: a process that has the old library mapped keeps it.
        partial = target.with_suffix(".partial")
        shutil.copyfile(BUILD / "_native.so", partial)
        os.replace(partial, target)


setup(ext_modules=[NativeLibrary()], cmdclass={"build_ext": CMakeBuild})
