"""What runs in the guest of bench/tune: `tegu tune prove` for each candidate on its path."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tegu.errors import TeguError
from tegu.tune import Machine, Setting, prove, workload
from tegu.tune.apply import targets


def main() -> None:
    """Prove /scenario.json's candidates; each has its path (netem) and its workload."""
    for candidate in json.loads(Path("/scenario.json").read_text())["candidates"]:
        for command in candidate["before"]:
            subprocess.run(command, check=True)
        kind, _, rest = candidate["setting"].partition(":")
        key, _, value = rest.partition("=")
        setting = Setting(kind, key, value, "on trial", "")
        command = ["/usr/bin/python3", "-S", "-m", "bench.tune.transfer", *candidate["transfer"]]
        try:
            proof = prove(
                setting, targets(setting, Machine())[0], workload(command), name=candidate["name"]
            )
            said = {"name": "proof", **proof.to_json()}
        except TeguError as e:
            said = {"name": "failed", "setting": setting.name, "why": e.message}
        print("@@ " + json.dumps(said), flush=True)
        for command in candidate["after"]:
            subprocess.run(command, check=True)
    print('@@ {"name": "end"}', flush=True)


if __name__ == "__main__":
    main()
