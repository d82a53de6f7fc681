#!/usr/bin/env bash
# Asks everything of a machine with a GPU: correctness first, then rates. About 8 minutes.
#
#   benchmarks/gpu.sh OUT [--wheels DIR] [--minutes 8] [--part NAME] [--device cuda]
#   benchmarks/gpu.sh wheels DIR
#
# The machine needs Python 3.11 or newer with torch and torchvision; PYTHON names it. What else
# medclipsam needs is installed beside it, from the network or, with --wheels, from a folder. The
# second form fills that folder on a machine that has a network and medclipsam: with the same
# Python version and platform. OUT gets a JSON for each part and summary.md; the same command
# goes on with parts that are missing.
set -euo pipefail

usage() { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit "$1"; }

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
case ${1:-} in
  -h|--help) usage 0 ;;
  ''|-*) usage 2 ;;
esac

if [ "$1" = wheels ]; then
  [ $# = 2 ] || usage 2
  list=$(mktemp)
  trap 'rm -f "$list"' EXIT
  "$python" -m medclipsam.benchmarks.gpu.wheels > "$list"
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$2" --requirement "$list"
  echo "$2 has $(wc -l < "$list") packages; copy it with this checkout to the GPU machine"
  exit
fi

out=$1; shift
wheels=; rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheels)
      [ $# -ge 2 ] && [ -d "$2" ] || { echo "--wheels needs a folder of wheels" >&2; exit 2; }
      wheels=$2; shift 2 ;;
    *) rest+=("$1"); shift ;;
  esac
done

"$python" -c 'import torch, torchvision' || {
  echo "$python has no torch and torchvision; install those that fit the driver, then run this again" >&2
  exit 1
}
mkdir -p "$out"
venv=$out/venv
if [ ! -e "$venv/installed" ]; then
  "$python" -m venv --system-site-packages "$venv"
  "$python" -c 'import torch, torchvision
print(f"torch=={torch.__version__}\ntorchvision=={torchvision.__version__}")' > "$venv/kept"
  pip=("$venv/bin/python" -m pip install --quiet)
  if [ -n "$wheels" ]; then  # just what is there: torch is not looked for
    "${pip[@]}" --no-index --no-deps "$wheels"/*.whl
    "${pip[@]}" --no-index --no-deps --no-build-isolation --editable "$root"
  else
    "${pip[@]}" --constraint "$venv/kept" --editable "$root"
  fi
  touch "$venv/installed"
fi

export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export MEDCLIPSAM_HOME=${MEDCLIPSAM_HOME:-$(cd "$out" && pwd)/home}
(umask 077 && mkdir -p "$MEDCLIPSAM_HOME")
exec "$venv/bin/python" -m medclipsam.benchmarks.gpu "$out" ${rest[@]+"${rest[@]}"}
