"""Builds the C++ LoRA kernel with the package; everything else is in pyproject.toml.

The library has a plain C ABI over raw pointers and is loaded with ctypes: no header of Python or
torch is needed and one build fits every torch version. Where it can't be compiled the installation
goes on without it, and the torch path serves with a warning.
"""

import platform
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = "kernels/lora/cpu"
# -O3: GCC only then unrolls the register blocks; at -O2 they live in memory, 3 to 6 times slower.
COMMON = ["-std=c++17", "-O3", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
# GCC warns of its own headers: `__m512 __Y = __Y` is how they say undefined.
AVX512 += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
SOURCES = ("dispatch", "pack", "isa_portable", "isa_avx2", "isa_avx512", "isa_avx512_bf16")


class BuildKernels(build_ext):
    """Compiles each instruction set's file with its own flags; the choice falls at run time."""

    flags: ClassVar[dict[str, list[str]]] = {
        "isa_avx2.cpp": AVX2,
        "isa_avx512.cpp": AVX512,
        "isa_avx512_bf16.cpp": [*AVX512, "-mavx512bf16"],
    }

    def build_extension(self, ext: Extension) -> None:
        """Compiles file by file, then links what came out."""
        x86 = platform.machine() in ("x86_64", "AMD64")
        objects = []
        for source in ext.sources:
            own = self.flags.get(source.rsplit("/", 1)[-1], []) if x86 else []
            objects += self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                extra_postargs=[*COMMON, *own],
                depends=ext.depends,
            )
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), libraries=["dl"], target_lang="c++"
        )


setup(
    ext_modules=[
        Extension(
            "lorebase.kernels.lora.cpu._grouped",
            sources=[f"{CPU}/{name}.cpp" for name in SOURCES],
            depends=[f"{CPU}/{name}.h" for name in ("grouped", "tile", "avx512")],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
