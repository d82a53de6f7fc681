#!/usr/bin/env bash
# Asks everything of a machine with a GPU: correctness first, then rates. About 8 minutes.
#
#   benchmarks/gpu.sh OUT [--wheels DIR] [--minutes 8] [--part NAME] [--device cuda]
#   benchmarks/gpu.sh wheels DIR
#
# The machine needs Python 3.11 or newer with torch and torchvision, which stay as they are; PYTHON
# names it. What else medclipsam needs is installed beside it, from the network or, with --wheels,
# from a folder, which may also hold a torchvision that fits the torch. The second form fills that
# folder on a machine that has a network and medclipsam: with the same Python version and platform.
# OUT gets a JSON for each part and summary.md; the same command goes on with what is missing.
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

needed='import torch, torchvision'
if [ -n "$wheels" ] && compgen -G "$wheels/torchvision-*.whl" > /dev/null; then
  needed='import torch'
fi
"$python" -c "$needed" || {
  echo "$python has no torch and torchvision; install those that fit the driver, then run this" \
    "again; a torchvision that fits the torch may also lie in the folder of --wheels" >&2
  exit 1
}
mkdir -p "$out"
venv=$out/venv
if [ ! -e "$venv/installed" ]; then
  # its packages are found after the new ones, pip among them, also if $python is of a venv itself
  "$python" -m venv --system-site-packages --without-pip "$venv"
  "$python" -c 'import sys
print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")' > "$venv/packages"
  "$venv/bin/python" -c 'import shutil, sys, sysconfig
shutil.copy(sys.argv[1], sysconfig.get_path("purelib") + "/machine.pth")' "$venv/packages"
  "$python" -c 'from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
for name in ("torch", "torchvision"):
    with suppress(PackageNotFoundError):
        print(f"{name}=={version(name)}")' > "$venv/kept"
  grep -q '^torch==' "$venv/kept" || {
    echo "$python has a torch that is no installed package, so that pip would replace it" >&2
    exit 1
  }
  pip=("$venv/bin/python" -m pip install --quiet)
  if [ -n "$wheels" ]; then  # just what is there, but for what is kept
    found=()
    for wheel in "$wheels"/*.whl; do
      name=${wheel##*/}
      grep -q "^${name%%-*}==" "$venv/kept" || found+=("$wheel")
    done
    "${pip[@]}" --no-index --no-deps "${found[@]}"
    "${pip[@]}" --no-index --no-deps --no-build-isolation --editable "$root"
  else
    "${pip[@]}" --constraint "$venv/kept" --editable "$root"
  fi
  touch "$venv/installed"
fi

export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
MEDCLIPSAM_HOME=$(cd "$out" && pwd)/home
NUMBA_CACHE_DIR=$MEDCLIPSAM_HOME/numba
export MEDCLIPSAM_HOME NUMBA_CACHE_DIR
(umask 077 && mkdir -p "$NUMBA_CACHE_DIR")
exec "$venv/bin/python" -m medclipsam.benchmarks.gpu "$out" ${rest[@]+"${rest[@]}"}
