"""What the image holds, as a CycloneDX document: its Python packages (read by cyclonedx-py) and Debian's.

Runs while the image `inventory` is built, for `./build.sh --sbom`:

    cyclonedx-py environment PYTHON | python sbom.py > sbom.cdx.json
"""

import json
import subprocess
import sys
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

bom = Bom.from_json(json.load(sys.stdin))  # type: ignore[attr-defined]
release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
distribution = f"{release['ID']}-{release['VERSION_ID']}".replace('"', "")
form = "${Package}\t${Version}\t${Architecture}\n"
installed = subprocess.run(["dpkg-query", "-W", "-f", form], capture_output=True, text=True, check=True).stdout
for line in installed.splitlines():
    name, version, architecture = line.split("\t")
    url = PackageURL("deb", "debian", name, version, {"arch": architecture, "distro": distribution})
    bom.components.add(
        Component(type=ComponentType.LIBRARY, name=name, version=version, purl=url, bom_ref=url.to_string())
    )
print(JsonV1Dot6(bom).output_as_string(indent=1))
