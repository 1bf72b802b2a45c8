"""Makes tests/golden/layouts/*.txt: layouts of tensor core instructions as CuTe's headers define them (NVIDIA CUTLASS, BSD-3-Clause).

    python cute_layouts.py            needs nvcc, and pip to fetch the package nvidia-cutlass (the wheel has the headers)

The tables state facts about the hardware; no code of CUTLASS is in them.
"""
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "nvidia-cutlass==4.2.0.0"
HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parents[1] / "tests" / "golden" / "layouts"

HEADERS = {
    "fragments": """# Which element of an operand a thread's registers hold: element e of thread t is number threads[t] + elements[e],
# which is row + rows * column (a: k is the column; b: rows are n, k is the column; ldmatrix, stmatrix: the column is the thread that
# has the address, the row the element of 16 bits that lies there).
# Two lines each: threads, elements. Made by tools/golden/cute_layouts.py from {package}.
""",
    "shared": """# Where wgmma's operands lie in shared memory, with a swizzle of so many bytes. k: 64 rows (mn) of the pattern's width in k.
# mn: 64 lines (k) of 128 mn. A line per row of memory: byte offset of each chunk of 16 bytes.
# descriptor: leading and stride byte offset in units of 16 bytes, base offset, layout type, of the product that begins there.
# Made by tools/golden/cute_layouts.py from {package}.
""",
}


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE], check=True)
        zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
        include = folder / "cutlass_library" / "source" / "include"
        program = folder / "layouts"
        subprocess.run(["nvcc", "-std=c++17", "-O1", "-arch=sm_90a", f"-I{include}", "-o", program, HERE / "cute_layouts.cpp"], check=True)
        OUT.mkdir(exist_ok=True)
        for table, header in HEADERS.items():
            text = subprocess.run([program, table], check=True, stdout=subprocess.PIPE, text=True).stdout
            rows = [line for line in text.splitlines(True) if not line.startswith("ERROR: cast_smem_ptr_to_uint")]
            (OUT / f"{table}.txt").write_text(header.format(package=PACKAGE) + "".join(rows))


main()
